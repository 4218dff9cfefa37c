//! Reads AMD assembly as ACO prints it: a label such as `BB7:` starts a block, and branches name a label.

/// Counts of one iteration of a loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loop {
    pub instructions: usize,
    /// Single-precision multiply-adds per lane.
    pub multiply_adds: usize,
    /// Loads from workgroup memory.
    pub workgroup_loads: usize,
}

/// Returns the innermost loop with the most multiply-adds. Among equal ones, the loop with the most instructions wins.
pub fn inner_loop(assembly: &str) -> Option<Loop> {
    let lines: Vec<&str> = assembly.lines().map(str::trim).collect();
    let label = |line: &str| line.strip_suffix(':').map(str::to_owned);
    let mut bodies = Vec::new();
    for (end, line) in lines.iter().enumerate() {
        let mut words = line.split_whitespace();
        let branch = words.next().is_some_and(|word| word.starts_with("s_branch") || word.starts_with("s_cbranch"));
        if let (true, Some(target)) = (branch, words.next())
            && let Some(start) = lines[..end].iter().position(|line| label(line).as_deref() == Some(target))
        {
            bodies.push((start, end));
        }
    }
    let innermost =
        |&(start, end): &(usize, usize)| !bodies.iter().any(|&(s, e)| (s, e) != (start, end) && start <= s && e <= end);
    let counted = bodies.iter().copied().filter(innermost).map(|(start, end)| count(&lines[start..=end]));
    counted.max_by_key(|body| (body.multiply_adds, body.instructions))
}

fn count(lines: &[&str]) -> Loop {
    let mut body = Loop::default();
    for line in lines.iter().filter(|line| !line.is_empty() && !line.ends_with(':') && !line.starts_with(';')) {
        body.instructions += 1;
        for word in line.split_whitespace() {
            let name = word.trim_start_matches("v_dual_").trim_start_matches("v_");
            let both = name.starts_with("pk_");
            let is = |names: &[&str]| {
                word.starts_with("v_") && names.iter().any(|n| name.trim_start_matches("pk_").starts_with(n))
            };
            if is(&["fma_f32", "fmac_f32", "fmaak_f32", "fmamk_f32", "mad_f32", "mac_f32", "madak_f32", "madmk_f32"]) {
                body.multiply_adds += if both { 2 } else { 1 };
            }
        }
        body.workgroup_loads += usize::from(line.starts_with("ds_read") || line.starts_with("ds_load"));
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn innermost_loop_with_most_multiply_adds_is_counted() {
        let assembly = "BB0:\n s_mov_b32 s0, 0\nBB1:\n v_fma_f32 v0, v1, v2, v0\nBB2:\n ds_read_b128 v[0:3], v4 ; 00\n v_fmac_f32_e32 v0, v1, v2\n \
             v_dual_fmac_f32 v0, v1, v2 :: v_dual_fmac_f32 v3, v4, v5\n v_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[0:1]\n s_cbranch_scc0 BB2 ; 1234\n\
             BB3:\n v_mul_f32 v0, v0, v0\n s_cbranch_scc1 BB3\n s_branch BB1\nBB4:\n s_endpgm\n";
        assert_eq!(inner_loop(assembly), Some(Loop { instructions: 5, multiply_adds: 5, workgroup_loads: 1 }));
        assert_eq!(inner_loop("BB0:\n s_branch BB1\nBB1:\n s_endpgm"), None);
    }
}
