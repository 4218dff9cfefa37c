// Running statistics of a batch norm in training:
//   running = (1 - MOMENTUM) * running + MOMENTUM * (mean, variance * M / (M - 1)),   M = positions.

override MOMENTUM: f32;

// `squares`: sum of squared deviations from the mean.
fn update_running(g: u32, mean: vec4<f32>, squares: vec4<f32>) {
    let unbiased = squares / f32(p.positions - 1u);
    running_mean[g] = (1.0 - MOMENTUM) * running_mean[g] + MOMENTUM * mean;
    running_var[g] = (1.0 - MOMENTUM) * running_var[g] + MOMENTUM * unbiased;
}
