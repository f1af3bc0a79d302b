// The kernels compiled for one instruction set; see common.h.
#include <cmath>
#include <cstdlib>
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#include "kernels.h"
#define RIVERRUN_SPACE avx512bf16
#define RIVERRUN_LEVEL 3
#define RIVERRUN_WIDTH 16
#define RIVERRUN_BF16 1
#include "all.inc"
#endif
