// Types and helpers of all kernels. Included by one file for each instruction set (isa_*.cpp), which sets
// RIVERRUN_SPACE (its namespace), RIVERRUN_WIDTH (floats of a vector) and, with AVX512-BF16, RIVERRUN_BF16.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#define RIVERRUN_API extern "C" __attribute__((visibility("default")))
#define ALWAYS_INLINE inline __attribute__((always_inline))

struct bf16 {
    uint16_t bits;
};
