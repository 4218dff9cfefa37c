// The sum of a column of a matrix of vec4s in a fixed order: four running sums over every fourth term, which are added at the end. The last
// terms, fewer than four, are added to the first sum. The importing kernel defines the matrix, `x`.

// The sum of x[i] over i = first, first + stride, ... below end.
fn column_total(first: u32, stride: u32, end: u32) -> vec4<f32> {
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var i = first;
    // The index arithmetic cannot wrap: a tensor has at most 2^30 elements, and a stride is at most as long as the tensor.
    while i + 3u * stride < end {
        sum0 += x[i];
        sum1 += x[i + stride];
        sum2 += x[i + 2u * stride];
        sum3 += x[i + 3u * stride];
        i += 4u * stride;
    }
#for j in 0..3
    if i + ${j}u * stride < end {
        sum0 += x[i + ${j}u * stride];
    }
#endfor
    return (sum0 + sum1) + (sum2 + sum3);
}
