//! The shader preprocessor: WGSL with four kinds of line directives.
//!
//! ```text
//! #import grid                  the contents of shaders/lib/grid.wgsl, once
//! #let TN4 = TN / 4             a name for an integer
//! #if HAS_BIAS && TN4 > 1       also #else and #endif
//! #for r in 0..TM               also #endfor; the lines between, once for each r
//!     acc${r}_$v += a$r[${q % 4}] * b$v;
//! #endfor
//! ```
//!
//! `$name` and `${expression}` insert an integer. Names come from the kernel's defines, `#let` and `#for`. Any other line that starts
//! with `#`, an unknown name, or an unclosed block is an [`Error::Shader`] with file and line.
//!
//! Loops are expanded as text because drivers keep an array that is indexed by a loop variable in memory, and the tiles of the
//! convolutions must be in registers. Sources are those that are compiled into the crate, so expansion has no limits.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

macro_rules! library {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, concat!("lib/", $name, ".wgsl"), include_str!(concat!("../../../shaders/lib/", $name, ".wgsl")))),+]
    };
}

/// The files that `#import` knows: name, path below `shaders/`, contents.
const LIBRARY: &[(&str, &str, &str)] = library!(
    "channel_reduce",
    "column",
    "conv_fused",
    "conv_interface",
    "conv_partials",
    "elementwise",
    "grid",
    "implicit_gemm",
    "kept",
    "moments",
    "norm",
    "norm_grads",
    "norm_partials",
    "norm_running",
    "rectify",
    "texture",
    "tree_sum",
);

/// An expanded shader.
#[derive(Clone, Debug, Default)]
pub struct Expanded {
    /// The WGSL source.
    pub wgsl: String,
    /// File and line, from 1, that each line of `wgsl` was expanded from.
    pub origins: Vec<(&'static str, usize)>,
}

/// Expands `source`, the contents of `file`, with the given defines.
///
/// # Errors
/// [`Error::Shader`] for a directive or an expression that is malformed.
pub fn expand(file: &'static str, source: &str, defines: &[(&str, i64)]) -> Result<Expanded> {
    let mut expander = Expander::default();
    for &(name, value) in defines {
        expander.names.0.insert(name.to_owned(), value);
    }
    expander.block(&number_lines(file, source))?;
    Ok(expander.out)
}

#[derive(Clone)]
struct Line<'a> {
    file: &'static str,
    number: usize,
    text: &'a str,
}

impl Line<'_> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::Shader { file: self.file.to_owned(), line: self.number, message: message.into() }
    }

    fn directive(&self) -> Option<(&str, &str)> {
        let rest = self.text.trim_start().strip_prefix('#')?;
        Some(rest.trim().split_once(char::is_whitespace).unwrap_or((rest.trim(), "")))
    }
}

fn number_lines<'a>(file: &'static str, source: &'a str) -> Vec<Line<'a>> {
    source.lines().enumerate().map(|(i, text)| Line { file, number: i + 1, text }).collect()
}

#[derive(Default)]
struct Expander {
    names: Scope,
    imported: Vec<&'static str>,
    out: Expanded,
}

impl Expander {
    fn block(&mut self, lines: &[Line<'_>]) -> Result<()> {
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            at += 1;
            let Some((word, rest)) = line.directive() else {
                self.text(line)?;
                continue;
            };
            match word {
                "import" => self.import(line, rest.trim())?,
                "let" => {
                    let (name, value) =
                        rest.split_once('=').ok_or_else(|| line.error("expected `#let NAME = VALUE`"))?;
                    let value = self.names.eval(line, value)?;
                    self.names.0.insert(identifier(line, name)?, value);
                }
                "if" => {
                    let (end, middle) = matching(lines, at, line, "if", "endif")?;
                    let (yes, no) = match middle {
                        Some(middle) => (&lines[at..middle], &lines[middle + 1..end]),
                        None => (&lines[at..end], &lines[end..end]),
                    };
                    let chosen = if self.names.eval(line, rest)? != 0 { yes } else { no };
                    self.block(chosen)?;
                    at = end + 1;
                }
                "for" => {
                    let (end, _) = matching(lines, at, line, "for", "endfor")?;
                    self.repeat(line, rest, &lines[at..end])?;
                    at = end + 1;
                }
                other => return Err(line.error(format!("unknown directive `#{other}`"))),
            }
        }
        Ok(())
    }

    fn import(&mut self, line: &Line<'_>, name: &str) -> Result<()> {
        let &(name, file, source) = LIBRARY.iter().find(|(n, ..)| *n == name).ok_or_else(|| {
            let known: Vec<_> = LIBRARY.iter().map(|(n, ..)| *n).collect();
            line.error(format!("no library file `{name}`; there are: {}", known.join(", ")))
        })?;
        if self.imported.contains(&name) {
            return Ok(());
        }
        self.imported.push(name);
        self.block(&number_lines(file, source))
    }

    fn repeat(&mut self, line: &Line<'_>, rest: &str, body: &[Line<'_>]) -> Result<()> {
        let usage = || line.error("expected `#for NAME in FIRST..END`");
        let (name, range) = rest.split_once(" in ").ok_or_else(usage)?;
        let (first, end) = range.split_once("..").ok_or_else(usage)?;
        let name = identifier(line, name)?;
        let (first, end) = (self.names.eval(line, first)?, self.names.eval(line, end)?);
        let outer = self.names.0.get(&name).copied();
        for value in first..end {
            self.names.0.insert(name.clone(), value);
            self.block(body)?;
        }
        match outer {
            Some(value) => self.names.0.insert(name, value),
            None => self.names.0.remove(&name),
        };
        Ok(())
    }

    /// Copies a line of WGSL, replacing `$name` and `${expression}`.
    fn text(&mut self, line: &Line<'_>) -> Result<()> {
        let mut rest = line.text;
        while let Some((before, after)) = rest.split_once('$') {
            self.out.wgsl.push_str(before);
            let (expression, tail) = if let Some(inner) = after.strip_prefix('{') {
                inner.split_once('}').ok_or_else(|| line.error("`${` without `}`"))?
            } else {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
                after.split_at(end)
            };
            let value = self.names.eval(line, expression)?;
            self.out.wgsl.push_str(&value.to_string());
            rest = tail;
        }
        self.out.wgsl.push_str(rest);
        self.out.wgsl.push('\n');
        self.out.origins.push((line.file, line.number));
        Ok(())
    }
}

/// Returns the index of the line that closes the block opened before `at`, and that of its `#else`.
fn matching(lines: &[Line<'_>], at: usize, open: &Line<'_>, word: &str, close: &str) -> Result<(usize, Option<usize>)> {
    let (mut depth, mut middle) = (0, None);
    for (i, line) in lines.iter().enumerate().skip(at) {
        match line.directive() {
            Some((w, _)) if w == word => depth += 1,
            Some((w, _)) if w == close && depth == 0 => return Ok((i, middle)),
            Some((w, _)) if w == close => depth -= 1,
            Some(("else", _)) if depth == 0 && word == "if" => match middle {
                Some(_) => return Err(line.error("a second `#else`")),
                None => middle = Some(i),
            },
            _ => {}
        }
    }
    Err(open.error(format!("`#{word}` without `#{close}`")))
}

fn identifier(line: &Line<'_>, name: &str) -> Result<String> {
    let name = name.trim();
    let ok = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if ok { Ok(name.to_owned()) } else { Err(line.error(format!("`{name}` is not a name"))) }
}

#[derive(Default)]
struct Scope(BTreeMap<String, i64>);

impl Scope {
    fn eval(&self, line: &Line<'_>, text: &str) -> Result<i64> {
        let mut parser = Parser { names: &self.0, line, rest: text.trim() };
        let value = parser.binary(0)?;
        if parser.rest.is_empty() {
            Ok(value)
        } else {
            Err(line.error(format!("cannot read `{}` in `{text}`", parser.rest)))
        }
    }
}

/// Binary operators by rising precedence.
const OPERATORS: &[&[&str]] = &[&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

struct Parser<'a> {
    names: &'a BTreeMap<String, i64>,
    line: &'a Line<'a>,
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn binary(&mut self, level: usize) -> Result<i64> {
        let Some(operators) = OPERATORS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|op| self.rest.starts_with(**op)) {
            self.take(operator);
            let right = self.binary(level + 1)?;
            left = self.apply(operator, left, right)?;
        }
        Ok(left)
    }

    fn apply(&self, operator: &str, a: i64, b: i64) -> Result<i64> {
        let value = match operator {
            "||" => Some(i64::from(a != 0 || b != 0)),
            "&&" => Some(i64::from(a != 0 && b != 0)),
            "==" => Some(i64::from(a == b)),
            "!=" => Some(i64::from(a != b)),
            "<=" => Some(i64::from(a <= b)),
            ">=" => Some(i64::from(a >= b)),
            "<" => Some(i64::from(a < b)),
            ">" => Some(i64::from(a > b)),
            "+" => a.checked_add(b),
            "-" => a.checked_sub(b),
            "*" => a.checked_mul(b),
            "/" => a.checked_div(b),
            _ => a.checked_rem(b),
        };
        value.ok_or_else(|| self.line.error(format!("{a} {operator} {b} has no value")))
    }

    fn unary(&mut self) -> Result<i64> {
        if self.take("!") {
            Ok(i64::from(self.unary()? == 0))
        } else if self.take("-") {
            self.unary()?.checked_neg().ok_or_else(|| self.line.error("a number out of range"))
        } else if self.take("(") {
            let value = self.binary(0)?;
            if !self.take(")") {
                return Err(self.line.error("`(` without `)`"));
            }
            Ok(value)
        } else {
            self.atom()
        }
    }

    fn atom(&mut self) -> Result<i64> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map_err(|_| self.line.error(format!("`{word}` is not a number")));
        }
        self.names.get(word).copied().ok_or_else(|| {
            let known: Vec<_> = self.names.keys().map(String::as_str).collect();
            self.line.error(format!("unknown name `{word}`; known are: {}", known.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(source: &str, defines: &[(&str, i64)]) -> String {
        expand("t.wgsl", source, defines).unwrap().wgsl
    }

    fn err(source: &str) -> String {
        expand("t.wgsl", source, &[("A", 1)]).unwrap_err().to_string()
    }

    #[test]
    fn repeats_substitutes_and_chooses() {
        let source =
            "#let B = A * 2\n#for r in 0..B\n#if r % 2 == 0\nx${r}_$r[${r + 1}];\n#else\ny$r;\n#endif\n#endfor";
        assert_eq!(ok(source, &[("A", 2)]), "x0_0[1];\ny1;\nx2_2[3];\ny3;\n");
    }

    #[test]
    fn expressions_have_the_usual_precedence() {
        assert_eq!(ok("${1 + 2 * 3 - -4 % 3}", &[]), "8\n");
        assert_eq!(ok("${!(1 == 2) && 3 >= 3 || 0}", &[]), "1\n");
    }

    #[test]
    fn a_loop_variable_ends_with_its_loop() {
        assert_eq!(ok("#for A in 3..4\n$A\n#endfor\n$A", &[("A", 1)]), "3\n1\n");
        assert!(err("#for r in 0..1\n#endfor\n$r").contains("unknown name `r`"));
    }

    #[test]
    fn nested_blocks_close_in_order() {
        let source = "#if 0\n#if 1\na\n#else\nb\n#endif\n#else\n#for i in 0..2\nc$i\n#endfor\n#endif";
        assert_eq!(ok(source, &[]), "c0\nc1\n");
    }

    #[test]
    fn imports_are_once() {
        let once = ok("#import grid", &[]);
        assert_eq!(ok("#import grid\n#import grid", &[]), once);
        assert!(once.contains("fn "));
    }

    #[test]
    fn mistakes_are_errors_with_file_and_line() {
        for (source, part) in [
            ("\n#wat", "t.wgsl:2: unknown directive `#wat`"),
            ("#if 1", "`#if` without `#endif`"),
            ("#for i in 0..2", "`#for` without `#endfor`"),
            ("#endif", "unknown directive `#endif`"),
            ("#if 1\n#else\n#else\n#endif", "t.wgsl:3: a second `#else`"),
            ("#import nope", "no library file `nope`"),
            ("#let 1a = 3", "`1a` is not a name"),
            ("$B", "unknown name `B`"),
            ("${1 / 0}", "has no value"),
            ("${1 + }", "unknown name ``"),
            ("${(1}", "`(` without `)`"),
            ("${1", "without `}`"),
            ("${9223372036854775807 + 1}", "has no value"),
        ] {
            let message = err(source);
            assert!(message.contains(part), "{source:?}: {message}");
        }
    }

    #[test]
    fn lines_know_where_they_come_from() {
        let expanded = expand("t.wgsl", "#import texture\n#for i in 0..2\nx$i\n#endfor\ny", &[]).unwrap();
        let mut lines = expanded.wgsl.lines().zip(&expanded.origins).collect::<Vec<_>>();
        assert_eq!(lines.len(), expanded.origins.len());
        assert!(lines[0].0.starts_with("//") && *lines[0].1 == ("lib/texture.wgsl", 1));
        let last = lines.split_off(lines.len() - 3);
        assert_eq!(last, [("x0", &("t.wgsl", 3)), ("x1", &("t.wgsl", 3)), ("y", &("t.wgsl", 5))]);
    }
}
