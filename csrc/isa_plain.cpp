// The kernels compiled for one instruction set; see common.h.
#include <cmath>
#include <cstdlib>
#include <omp.h>
#include "kernels.h"
#define RIVERRUN_SPACE plain
#define RIVERRUN_LEVEL 0
#define RIVERRUN_WIDTH 4
#include "all.inc"
