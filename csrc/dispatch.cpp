// The C interface. Each call goes to the kernels of the best instruction set that this processor has.
#include <cstdlib>

#include "kernels.h"

static const Kernels* best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (wide && __builtin_cpu_supports("avx512bf16")) return &avx512bf16::kernels;
    if (wide) return &avx512::kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::kernels;
#endif
    return &plain::kernels;
}

static const Kernels* table = best();

// Level in use: 0 plain, 1 AVX2, 2 AVX-512, 3 AVX-512 with BF16. A level above the processor's own is not taken.
RIVERRUN_API int riverrun_level() { return table->level; }

RIVERRUN_API int riverrun_set_level(int level) {
    const Kernels* top = best();
    if (level >= top->level) table = top;
#if defined(__x86_64__)
    else if (level == 2) table = &avx512::kernels;
    else if (level == 1) table = &avx2::kernels;
#endif
    else table = &plain::kernels;
    return table->level;
}

RIVERRUN_API void riverrun_norm_forward(int dtype, const void* x, const void* add, const void* weight, void* sum,
                                        void* out, float* scale, int64_t rows, int64_t size, float eps,
                                        int plus_one) {
    table->norm_forward(dtype, x, add, weight, sum, out, scale, rows, size, eps, plus_one);
}

RIVERRUN_API void riverrun_norm_backward(int dtype, const void* grad, const void* grad_sum, const void* x,
                                         const void* weight, const float* scale, void* out, float* d_weight,
                                         int64_t rows, int64_t size, int plus_one) {
    table->norm_backward(dtype, grad, grad_sum, x, weight, scale, out, d_weight, rows, size, plus_one);
}

RIVERRUN_API void riverrun_rotate(int dtype, void* x, const void* cos, const void* sin, int64_t tokens, int64_t heads,
                                  int64_t dim, int64_t row, int inverse) {
    table->rotate(dtype, x, cos, sin, tokens, heads, dim, row, inverse);
}

RIVERRUN_API void riverrun_swiglu_forward(int dtype, const void* gate_up, void* out, int64_t rows, int64_t size) {
    table->swiglu_forward(dtype, gate_up, out, rows, size);
}

RIVERRUN_API void riverrun_swiglu_backward(int dtype, const void* grad, const void* gate_up, void* out, int64_t rows,
                                           int64_t size) {
    table->swiglu_backward(dtype, grad, gate_up, out, rows, size);
}

RIVERRUN_API void riverrun_softmax_slab(int dtype, void* logits, const float* log_sums, const int64_t* targets,
                                        int64_t rows, int64_t size) {
    table->softmax_slab(dtype, logits, log_sums, targets, rows, size);
}

RIVERRUN_API void riverrun_cross_entropy(int dtype, void* logits, const int64_t* targets, float* losses,
                                         const float* weights, int64_t rows, int64_t size) {
    table->cross_entropy(dtype, logits, targets, losses, weights, rows, size);
}

RIVERRUN_API void riverrun_attention_forward(int dtype, const void* q, const void* k, const void* v, void* out,
                                             float* lse, const Segment* segments, int64_t count,
                                             const AttentionShape* shape) {
    table->attention_forward(dtype, q, k, v, out, lse, segments, count, *shape);
}

RIVERRUN_API void riverrun_attention_backward(int dtype, const void* grad, const void* q, const void* k, const void* v,
                                              const void* out, const float* lse, void* dq, void* dk, void* dv,
                                              const Segment* segments, int64_t count, const AttentionShape* shape,
                                              float* scratch, int64_t lanes) {
    table->attention_backward(dtype, grad, q, k, v, out, lse, dq, dk, dv, segments, count, *shape, scratch, lanes);
}

RIVERRUN_API void riverrun_adamw(int dtype, int grad_dtype, float* master, void* weight, const void* grad, float* m,
                                 float* v, int64_t size, float rate, float beta1, float beta2, float eps, float decay,
                                 float correction1, float correction2, float grad_scale) {
    table->adamw(dtype, grad_dtype, master, weight, grad, m, v, size, rate, beta1, beta2, eps, decay, correction1,
                 correction2, grad_scale);
}

RIVERRUN_API void riverrun_adamw8bit(int dtype, int grad_dtype, float* master, void* weight, const void* grad, uint8_t* m_codes,
                      float* m_scales, uint8_t* v_codes, float* v_scales, const float* m_table, const float* v_table,
                      int64_t size, float rate, float beta1, float beta2, float eps, float decay, float correction1,
                      float correction2, float grad_scale) {
    table->adamw8bit(dtype, grad_dtype, master, weight, grad, m_codes, m_scales, v_codes, v_scales, m_table, v_table,
                     size, rate, beta1, beta2, eps, decay, correction1, correction2, grad_scale);
}

RIVERRUN_API void riverrun_attention_paged(int dtype, const Paged* paged, const PagedShape* shape) {
    table->attention_paged(dtype, paged, *shape);
}

RIVERRUN_API void riverrun_sum_squares(int dtype, const void* x, int64_t size, double* out) {
    table->sum_squares(dtype, x, size, out);
}
