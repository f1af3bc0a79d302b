// The table of kernels that every instruction set fills. Pointers are to contiguous memory unless a stride is named.
// dtype: 0 float32, 1 bfloat16; in optimizers 2: bfloat16 weights and, in place of masters, the low halves of the fp32
// values that they round (int16). T tokens, E features of a row.
#pragma once
#include "common.h"

// One run of queries and the keys that they see: `before` keys from token `before_start` on, all of them visible, then
// the queries' own tokens, causally.
struct Segment {
    int64_t start, length, before_start, before;
};

struct AttentionShape {
    int64_t tokens, heads, kv_heads, dim, row;  // row: elements between two tokens of q, k and v
    int64_t window;                             // keys that a query sees at most, itself included; 0: all
    float scale;
};

// `rows` query tokens (row_tokens[rows_at ...]) and `keys` places from position `first` on, in the blocks of
// tables[table_at ...].
struct Span {
    int64_t rows_at, rows, table_at, first, keys;
};

struct PagedShape {
    int64_t heads, kv_heads, dim, row, block;  // row: elements between two tokens of q; block: tokens of a block
    int64_t window;                            // keys that a query sees at most, itself included; 0: all
    int64_t bits;                              // of a code where the cache holds codes: 8 or 4
    float scale;
};

// A cache of blocks [blocks, kv_heads, block, dim] of q's type, or with scales of codes: code * step + least,
// (step, least) in half precision [blocks, kv_heads, block, 2]. Two codes of 4 bits stand in a byte: places d (low) and
// d + dim / 2. state: [rows of all spans, heads, dim + 2] floats.
// parts[parts_at[t] ... parts_at[t + 1]]: rows of spans whose query is token t, by position of their keys.
struct Paged {
    const void *q, *keys, *values;
    const uint16_t *key_scales, *value_scales;
    void* out;
    const Span* span;
    int64_t spans, tokens;
    const int64_t *row_tokens, *positions, *tables, *parts_at, *parts;
    float* state;
};

struct Kernels {
    int level;
    void (*norm_forward)(int dtype, const void* x, const void* add, const void* weight, void* sum, void* out,
                         float* scale, int64_t rows, int64_t size, float eps, int plus_one);
    void (*norm_backward)(int dtype, const void* grad, const void* grad_sum, const void* x, const void* weight,
                          const float* scale, void* out, float* d_weight, int64_t rows, int64_t size, int plus_one);
    void (*rotate)(int dtype, void* x, const void* cos, const void* sin, int64_t tokens, int64_t heads, int64_t dim,
                   int64_t row, int inverse);
    void (*swiglu_forward)(int dtype, const void* gate_up, void* out, int64_t rows, int64_t size);
    void (*swiglu_backward)(int dtype, const void* grad, const void* gate_up, void* out, int64_t rows, int64_t size);
    void (*cross_entropy)(int dtype, void* logits, const int64_t* targets, float* losses, const float* weights,
                          int64_t rows, int64_t size);
    void (*attention_forward)(int dtype, const void* q, const void* k, const void* v, void* out, float* lse,
                              const Segment* segments, int64_t count, AttentionShape shape);
    void (*attention_backward)(int dtype, const void* grad, const void* q, const void* k, const void* v,
                               const void* out, const float* lse, void* dq, void* dk, void* dv,
                               const Segment* segments, int64_t count, AttentionShape shape, float* scratch,
                               int64_t lanes);
    void (*adamw)(int dtype, int grad_dtype, float* master, void* weight, const void* grad, float* m, float* v,
                  int64_t size, float rate, float beta1, float beta2, float eps, float decay, float correction1,
                  float correction2, float grad_scale);
    void (*adamw8bit)(int dtype, int grad_dtype, float* master, void* weight, const void* grad, uint8_t* m_codes,
                      float* m_scales, uint8_t* v_codes, float* v_scales, const float* m_table, const float* v_table,
                      int64_t size, float rate, float beta1, float beta2, float eps, float decay, float correction1,
                      float correction2, float grad_scale);
    void (*attention_paged)(int dtype, const Paged* paged, PagedShape shape);
    void (*sum_squares)(int dtype, const void* x, int64_t size, double* out);
    void (*softmax_slab)(int dtype, void* logits, const float* log_sums, const int64_t* targets, int64_t rows,
                         int64_t size);
};

namespace plain { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512bf16 { extern const Kernels kernels; }
