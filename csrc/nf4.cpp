// NF4 and 8-bit rows into and out of bfloat16 and float32, a slab of a matrix at a time.
//
// Layout (riverrun/models/quantized/nf4.py): values in row-major order, 64 to a block; a block has one `absmax`; a
// value / absmax is the nearest of 16 levels, two codes a byte, the first in the high nibble. absmax is float32, or
// (double quantisation) a code of 256 dynamic levels * the scale of 256 absmax + a mean. Every result equals numpy's to
// the last bit: each product and sum is rounded once (`volatile` keeps them from becoming one instruction), bfloat16 is
// rounded to nearest, ties to even. A block that holds something that is not a number gets an absmax that is none.
//
// Written three times where it pays: AVX-512 (BW), AVX2, and plain C++; chosen at run time.

#include <cstdint>
#include <cstring>
#include <limits>

#include "common.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC 12's own header (PR 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define RR_X86 1
#define RR_512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define RR_256 __attribute__((target("avx2")))
#endif

RIVERRUN_API int riverrun_level();

namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kGroup = 256;  // absmax values that share a scale

struct Nf4 {
  const uint8_t* packed;
  const uint8_t* codes;  // of absmax; null where absmax is plain
  const float* absmax;
  const float* dynamic;  // 256 levels
  const float* scale;
  const float* levels;  // 16 levels
  float mean;
};

inline float block_absmax(const Nf4& w, int64_t block) {
  if (!w.codes) return w.absmax[block];
  volatile float scaled = w.dynamic[w.codes[block]] * w.scale[block / kGroup];
  return scaled + w.mean;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_bf16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// 0 plain, 1 AVX2, 2 AVX-512: the instruction set of all kernels (dispatch.cpp).
inline int path() {
  const int level = riverrun_level();
  return level > 2 ? 2 : level;
}

// -- one block of 64 values into 64 places -------------------------------------------------------------------------

void block_bf16_plain(const uint8_t* packed, float absmax, const float* levels, uint16_t* out) {
  uint16_t table[16];
  for (int i = 0; i < 16; ++i) table[i] = to_bf16(levels[i] * absmax);
  for (int i = 0; i < kBlock / 2; ++i) {
    out[2 * i] = table[packed[i] >> 4];
    out[2 * i + 1] = table[packed[i] & 15];
  }
}

void block_fp32_plain(const uint8_t* packed, float absmax, const float* levels, float* out) {
  float table[16];
  for (int i = 0; i < 16; ++i) table[i] = levels[i] * absmax;
  for (int i = 0; i < kBlock / 2; ++i) {
    out[2 * i] = table[packed[i] >> 4];
    out[2 * i + 1] = table[packed[i] & 15];
  }
}

#if RR_X86

RR_256 void block_bf16_avx2(const uint8_t* packed, float absmax, const float* levels, uint16_t* out) {
  alignas(16) uint8_t low[16], high[16];
  for (int i = 0; i < 16; ++i) {
    const uint16_t value = to_bf16(levels[i] * absmax);
    low[i] = static_cast<uint8_t>(value);
    high[i] = static_cast<uint8_t>(value >> 8);
  }
  const __m128i lows = _mm_load_si128(reinterpret_cast<const __m128i*>(low));
  const __m128i highs = _mm_load_si128(reinterpret_cast<const __m128i*>(high));
  const __m128i nibble = _mm_set1_epi8(15);
  for (int half = 0; half < 2; ++half) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + 16 * half));
    const __m128i first = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), second = _mm_and_si128(bytes, nibble);
    const __m128i index[2] = {_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)};
    for (int part = 0; part < 2; ++part) {
      const __m128i a = _mm_shuffle_epi8(lows, index[part]), b = _mm_shuffle_epi8(highs, index[part]);
      __m128i* place = reinterpret_cast<__m128i*>(out + 32 * half + 16 * part);
      _mm_storeu_si128(place, _mm_unpacklo_epi8(a, b));
      _mm_storeu_si128(place + 1, _mm_unpackhi_epi8(a, b));
    }
  }
}

RR_256 void block_fp32_avx2(const uint8_t* packed, float absmax, const float* levels, float* out) {
  const __m256 factor = _mm256_set1_ps(absmax);
  const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(levels), factor);
  const __m256 high = _mm256_mul_ps(_mm256_loadu_ps(levels + 8), factor);
  for (int i = 0; i < kBlock / 8; ++i) {
    int32_t four;
    std::memcpy(&four, packed + 4 * i, 4);
    const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));  // a byte in each 64 bits
    const __m256i index = _mm256_or_si256(_mm256_srli_epi64(wide, 4), _mm256_slli_epi64(wide, 32));
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 as the sign
    const __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                                          _mm256_permutevar8x32_ps(high, index), upper);
    _mm256_storeu_ps(out + 8 * i, value);
  }
}

RR_512 inline __m512i round_bf16(__m512 values) {  // 16 bfloat16 in the low halves of 32 bits
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_srli_epi32(rounded, 16);
}

RR_512 void block_bf16_avx512(const uint8_t* packed, float absmax, const float* levels, uint16_t* out) {
  const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(absmax));
  const __m256i table = _mm512_cvtepi32_epi16(round_bf16(scaled));
  const __m512i both = _mm512_broadcast_i64x4(table);  // the index has five bits, the fifth is noise
  for (int half = 0; half < 2; ++half) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + 16 * half));
    const __m512i wide = _mm512_cvtepu8_epi32(bytes);
    const __m512i index = _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
    _mm512_storeu_si512(out + 32 * half, _mm512_permutexvar_epi16(index, both));
  }
}

RR_512 void block_fp32_avx512(const uint8_t* packed, float absmax, const float* levels, float* out) {
  const __m512 table = _mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(absmax));
  for (int i = 0; i < kBlock / 16; ++i) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + 8 * i));
    const __m512i wide = _mm512_cvtepu8_epi64(bytes);
    const __m512i index = _mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32));
    _mm512_storeu_ps(out + 16 * i, _mm512_permutexvar_ps(index, table));
  }
}

#endif

using Bf16Block = void (*)(const uint8_t*, float, const float*, uint16_t*);
using Fp32Block = void (*)(const uint8_t*, float, const float*, float*);

inline Bf16Block bf16_block(int path) {
#if RR_X86
  if (path == 2) return block_bf16_avx512;
  if (path == 1) return block_bf16_avx2;
#endif
  (void)path;
  return block_bf16_plain;
}

inline Fp32Block fp32_block(int path) {
#if RR_X86
  if (path == 2) return block_fp32_avx512;
  if (path == 1) return block_fp32_avx2;
#endif
  (void)path;
  return block_fp32_plain;
}

// Rows [row0, row1) and columns [col0, col1) of a matrix with `cols` columns; blocks may begin in the middle of a row.
template <typename T, typename Block, typename Convert>
void slab(const Nf4& w, int64_t cols, int64_t row0, int64_t row1, int64_t col0, int64_t col1, T* out, Block block,
          Convert convert) {
  const bool whole = cols % kBlock == 0 && col0 % kBlock == 0 && col1 % kBlock == 0;
#pragma omp parallel for schedule(static)
  for (int64_t row = row0; row < row1; ++row) {
    T* place = out + (row - row0) * (col1 - col0);
    const int64_t at = row * cols;
    if (whole) {
      for (int64_t col = col0; col < col1; col += kBlock, place += kBlock)
        block(w.packed + (at + col) / 2, block_absmax(w, (at + col) / kBlock), w.levels, place);
      continue;
    }
    for (int64_t i = at + col0; i < at + col1; ++i) {
      const uint8_t pair = w.packed[i / 2];
      *place++ = convert(w.levels[i % 2 ? pair & 15 : pair >> 4] * block_absmax(w, i / kBlock));
    }
  }
}

// -- quantising ----------------------------------------------------------------------------------------------------

inline float magnitude(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0x7fffffffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline __attribute__((always_inline)) void quantize_values(const float* values, const float* middles, uint8_t* packed,
                                                           float* absmax) {
  float largest = 0;
  int strange = 0;
  for (int i = 0; i < kBlock; ++i) {
    const float size = magnitude(values[i]);
    largest = size > largest ? size : largest;
    strange |= values[i] != values[i];
  }
  const float inverse = largest > 0 ? 1.0f / largest : 0.0f;
  int32_t codes[kBlock] = {};
  for (int m = 0; m < 15; ++m)
    for (int i = 0; i < kBlock; ++i) codes[i] += values[i] * inverse > middles[m];
  for (int i = 0; i < kBlock / 2; ++i) packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  *absmax = strange ? std::numeric_limits<float>::quiet_NaN() : largest;
}

void quantize_block_plain(const float* values, const float* middles, uint8_t* packed, float* absmax) {
  quantize_values(values, middles, packed, absmax);
}

#if RR_X86
RR_256 void quantize_block_avx2(const float* values, const float* middles, uint8_t* packed, float* absmax) {
  quantize_values(values, middles, packed, absmax);
}
#endif

#if RR_X86
RR_512 void quantize_block_avx512(const float* values, const float* middles, uint8_t* packed, float* absmax) {
  __m512 part[4], largest = _mm512_setzero_ps();
  __mmask16 strange = 0;  // not a number
  for (int i = 0; i < 4; ++i) {
    part[i] = _mm512_loadu_ps(values + 16 * i);
    strange = static_cast<__mmask16>(strange | _mm512_cmp_ps_mask(part[i], part[i], _CMP_UNORD_Q));
    largest = _mm512_max_ps(largest, _mm512_abs_ps(part[i]));
  }
  const float most = _mm512_reduce_max_ps(largest);
  const __m512 inverse = _mm512_set1_ps(most > 0 ? 1.0f / most : 0.0f);
  const __m512 table = _mm512_loadu_ps(middles);  // 15, and one that is never asked for
  for (int i = 0; i < 4; ++i) {
    const __m512 scaled = _mm512_mul_ps(part[i], inverse);
    __m512i code = _mm512_setzero_si512();
    for (int step = 8; step; step /= 2) {
      const __m512 middle = _mm512_permutexvar_ps(_mm512_add_epi32(code, _mm512_set1_epi32(step - 1)), table);
      const __mmask16 above = _mm512_cmp_ps_mask(scaled, middle, _CMP_GT_OQ);
      code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
    }
    // (first, second) of 64 bits -> first << 4 | second in the low byte
    const __m512i pair = _mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + 8 * i), _mm512_cvtepi64_epi8(pair));
  }
  *absmax = strange ? std::numeric_limits<float>::quiet_NaN() : most;
}
#endif

using QuantizeBlock = void (*)(const float*, const float*, uint8_t*, float*);

inline QuantizeBlock quantize_block(int path) {
#if RR_X86
  if (path == 2) return quantize_block_avx512;
  if (path == 1) return quantize_block_avx2;
#endif
  (void)path;
  return quantize_block_plain;
}

// -- 8-bit rows ----------------------------------------------------------------------------------------------------

template <typename T, typename Convert>
inline __attribute__((always_inline)) void int8_rows(const int8_t* codes, const float* scale, int64_t cols, int64_t row,
                                                     int64_t col0, int64_t col1, T* place, Convert convert) {
  const int8_t* from = codes + row * cols;
  const float factor = scale[row];
  for (int64_t col = col0; col < col1; ++col) place[col - col0] = convert(static_cast<float>(from[col]) * factor);
}

struct Bf16 {
  inline __attribute__((always_inline)) uint16_t operator()(float value) const {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};
struct Fp32 {
  inline __attribute__((always_inline)) float operator()(float value) const { return value; }
};

template <typename T, typename Convert>
struct Int8Row {
#if RR_X86
  RR_512 static void avx512(const int8_t* c, const float* s, int64_t n, int64_t r, int64_t a, int64_t b, T* o) {
    int8_rows(c, s, n, r, a, b, o, Convert());
  }
  RR_256 static void avx2(const int8_t* c, const float* s, int64_t n, int64_t r, int64_t a, int64_t b, T* o) {
    int8_rows(c, s, n, r, a, b, o, Convert());
  }
#endif
  static void plain(const int8_t* c, const float* s, int64_t n, int64_t r, int64_t a, int64_t b, T* o) {
    int8_rows(c, s, n, r, a, b, o, Convert());
  }
  static void run(int path, const int8_t* c, const float* s, int64_t n, int64_t row0, int64_t row1, int64_t a,
                  int64_t b, T* out) {
    auto one = plain;
#if RR_X86
    if (path == 2) one = avx512;
    if (path == 1) one = avx2;
#endif
#pragma omp parallel for schedule(static)
    for (int64_t row = row0; row < row1; ++row) one(c, s, n, row, a, b, out + (row - row0) * (b - a));
  }
};

}  // namespace

// out [row1 - row0, col1 - col0], float32 (dtype 0) or bfloat16 (dtype 1). codes null: absmax is plain float32.
RIVERRUN_API void riverrun_nf4_dequantize(int64_t dtype, const uint8_t* packed, const uint8_t* codes,
                                          const float* absmax, const float* scale, float mean, const float* levels,
                                          const float* dynamic, int64_t cols, int64_t row0, int64_t row1, int64_t col0,
                                          int64_t col1, void* out) {
  const Nf4 w{packed, codes, absmax, dynamic, scale, levels, mean};
  if (dtype == 0)
    slab(w, cols, row0, row1, col0, col1, static_cast<float*>(out), fp32_block(path()), Fp32());
  else
    slab(w, cols, row0, row1, col0, col1, static_cast<uint16_t*>(out), bf16_block(path()), to_bf16);
}

// values [blocks * 64], float32 (dtype 0) or bfloat16 (dtype 1); middles: 15 bounds between the levels and one more.
RIVERRUN_API void riverrun_nf4_quantize(int64_t dtype, const void* values, int64_t blocks, const float* middles,
                                        uint8_t* packed, float* absmax) {
  const QuantizeBlock one = quantize_block(path());
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    float row[kBlock];
    if (dtype == 0) {
      std::memcpy(row, static_cast<const float*>(values) + block * kBlock, sizeof(row));
    } else {
      const uint16_t* from = static_cast<const uint16_t*>(values) + block * kBlock;
      for (int i = 0; i < kBlock; ++i) row[i] = from_bf16(from[i]);
    }
    one(row, middles, packed + block * kBlock / 2, absmax + block);
  }
}

// 8-bit rows: value = code * scale[row]; out [row1 - row0, col1 - col0], float32 (dtype 0) or bfloat16 (dtype 1).
RIVERRUN_API void riverrun_int8_dequantize(int64_t dtype, const int8_t* codes, const float* scale, int64_t cols,
                                           int64_t row0, int64_t row1, int64_t col0, int64_t col1, void* out) {
  if (dtype == 0)
    Int8Row<float, Fp32>::run(path(), codes, scale, cols, row0, row1, col0, col1, static_cast<float*>(out));
  else
    Int8Row<uint16_t, Bf16>::run(path(), codes, scale, cols, row0, row1, col0, col1, static_cast<uint16_t*>(out));
}
