//! `vae-wgpu-wasm-bindgen IN.wasm OUT_DIR NAME` writes what `wasm-bindgen --target web --no-typescript --remove-name-section
//! --out-dir OUT_DIR --out-name NAME IN.wasm` does, for machines where that program is not installed.

use std::env;
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [input, folder, name] = arguments.as_slice() else {
        eprintln!("usage: vae-wgpu-wasm-bindgen IN.wasm OUT_DIR NAME");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    // Unlike the program, the library leaves out the default path of init() unless asked.
    bindgen
        .input_path(input)
        .out_name(name)
        .typescript(false)
        .remove_name_section(true)
        .omit_default_module_path(false);
    match bindgen.web(true).and_then(|bindgen| bindgen.generate(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot convert {input}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
