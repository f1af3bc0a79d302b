// The kernels compiled for one instruction set; see common.h.
#include <cmath>
#include <cstdlib>
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")
#include "kernels.h"
#define RIVERRUN_SPACE avx2
#define RIVERRUN_LEVEL 1
#define RIVERRUN_WIDTH 8
#include "all.inc"
#endif
