// Vectors of 16 floats, kept in memory as fp32 or as bf16, and what layers compute with them.
//
// They are the vector extensions of GCC and Clang: with AVX-512 one register, elsewhere several.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace trimtab {

constexpr long LANES = 16;
constexpr long BLOCK = 4 * LANES;  // as many numbers are worked on at once

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
using Bfloat = uint16_t;  // the upper half of a float

inline Floats floats(float value) { return value - Floats{}; }

inline Floats load(const float* place) {
  Floats out;
  std::memcpy(&out, place, sizeof out);
  return out;
}

inline Floats load(const Bfloat* place) {
  Halves upper;
  std::memcpy(&upper, place, sizeof upper);
  return (Floats)(__builtin_convertvector(upper, Bits) << 16);
}

inline void store(float* place, Floats values) { std::memcpy(place, &values, sizeof values); }

// Rounds to the nearest, ties to even; what is not a number stays so.
inline void store(Bfloat* place, Floats values) {
#ifdef __AVX512BF16__
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)values);
  std::memcpy(place, &rounded, sizeof rounded);
#else
  Bits bits = (Bits)values;
  Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = values == values ? rounded : Bits{} + 0x7fc0;
  Halves upper = __builtin_convertvector(rounded, Halves);
  std::memcpy(place, &upper, sizeof upper);
#endif
}

// As above for the first `count` numbers only: the others are as in `filling`, and stay in memory.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline __mmask16 first(long count) {
  return count >= LANES ? 0xffff : (1u << std::max(count, 0L)) - 1;
}

inline Floats load_some(const float* place, long count, Floats filling) {
  return (Floats)_mm512_mask_loadu_ps((__m512)filling, first(count), place);
}

inline Floats load_some(const Bfloat* place, long count, Floats filling) {
  const __m256i upper = _mm256_maskz_loadu_epi16(first(count), place);
  const Floats values = (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16);
  return (Floats)_mm512_mask_mov_ps((__m512)filling, first(count), (__m512)values);
}

inline void store_some(float* place, long count, Floats values) {
  _mm512_mask_storeu_ps(place, first(count), (__m512)values);
}

inline void store_some(Bfloat* place, long count, Floats values) {
  Bfloat all[LANES];
  store(all, values);
  const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(all));
  _mm256_mask_storeu_epi16(place, first(count), upper);
}
#else
template <class Number>
Floats load_some(const Number* place, long count, Floats filling) {
  if (count >= LANES) return load(place);
  if (count <= 0) return filling;
  Number all[LANES] = {};
  std::memcpy(all, place, count * sizeof(Number));
  const Floats values = load(all);
  std::memcpy(&filling, &values, count * sizeof(float));
  return filling;
}

template <class Number>
void store_some(Number* place, long count, Floats values) {
  if (count >= LANES) return store(place, values);
  Number all[LANES];
  store(all, values);
  if (count > 0) std::memcpy(place, all, count * sizeof(Number));
}
#endif

inline float sum_of(Floats values) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight halves[2];
  std::memcpy(halves, &values, sizeof values);
  const Eight half = halves[0] + halves[1];
  Four quarters[2];
  std::memcpy(quarters, &half, sizeof half);
  const Four quarter = quarters[0] + quarters[1];
  return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

inline Floats at_least(Floats values, float bound) {
  return values < bound ? floats(bound) : values;
}

inline Floats at_most(Floats values, float bound) {
  return values > bound ? floats(bound) : values;
}

// e to the power of each value, to about 2e-7 of it: 2 to the power of its whole part, times a
// Taylor polynomial of what is left. Below -87 the result stays what it is there.
inline Floats exponential(Floats values) {
  const float rounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
  values = at_most(at_least(values, -87.0f), 88.0f);
  Floats shifted = values * 1.44269504f + rounder;
  Floats whole = shifted - rounder;
  Floats left = values - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats sum = floats(1.0f / 720);
  const float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float term : terms) sum = sum * left + term;
  Bits power = ((Bits)shifted - 0x4b400000u + 127) << 23;
  return sum * (Floats)power;
}

// 1 / values, for values that are not tiny: an estimate of 14 bits and one step of Newton's.
inline Floats inverse(Floats values) {
#ifdef __AVX512F__
  const Floats near = (Floats)_mm512_rcp14_ps((__m512)values);
  return near * (2.0f - values * near);
#else
  return 1.0f / values;
#endif
}

constexpr float LIMIT = 85.0f;  // where activations are at their ends, and nothing overflows yet

// Activations: the value, and its derivative. `dear` ones are not worth computing twice.

struct Same {
  static constexpr bool dear = false;
  static Floats value(Floats x) { return x; }
  static Floats slope(Floats) { return floats(1.0f); }
};

struct Relu {
  static constexpr bool dear = false;
  static Floats value(Floats x) { return x < 0.0f ? Floats{} : x; }
  static Floats slope(Floats x) { return x <= 0.0f ? Floats{} : floats(1.0f); }
};

// x times the share of a normal distribution below x (Hendrycks and Gimpel 2016, 1606.08415); the
// share by Abramowitz and Stegun 7.1.26, to 1.5e-7.
struct Gelu {
  static constexpr bool dear = true;
  static Floats bell(Floats x) { return exponential(-0.5f * x * x); }
  static Floats below(Floats x, Floats bell) {
    const Floats t = inverse(1.0f + 0.231641888f * (x < 0.0f ? -x : x));
    Floats sum = floats(1.061405429f);
    const float terms[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    for (float term : terms) sum = sum * t + term;
    const Floats tail = 0.5f * sum * t * bell;
    return x < 0.0f ? tail : 1.0f - tail;
  }
  static Floats value(Floats x) {
    const Floats near = at_most(at_least(x, -LIMIT), LIMIT);
    return at_least(x, -LIMIT) * below(near, bell(near));
  }
  static Floats slope(Floats x) {
    x = at_most(at_least(x, -LIMIT), LIMIT);
    const Floats height = bell(x);
    return below(x, height) + x * (0.398942280f * height);
  }
};

struct Silu {
  static constexpr bool dear = true;
  static Floats value(Floats x) { return at_least(x, -LIMIT) * inverse(1.0f + exponential(-x)); }
  static Floats slope(Floats x) {
    x = at_most(at_least(x, -LIMIT), LIMIT);
    const Floats share = inverse(1.0f + exponential(-x));
    return share * (1.0f + x * (1.0f - share));
  }
};

struct Hardswish {
  static constexpr bool dear = false;
  static Floats value(Floats x) {
    return x * (at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6));
  }
  static Floats slope(Floats x) {
    Floats inside = x * (1.0f / 3) + 0.5f;
    return x <= -3.0f ? Floats{} : (x >= 3.0f ? floats(1.0f) : inside);
  }
};

// Calls `use` with the activation of this number, as fused.py numbers it.
template <class Use>
void with_activation(long number, Use&& use) {
  switch (number) {
    case 0: return use(Same{});
    case 1: return use(Relu{});
    case 2: return use(Gelu{});
    case 3: return use(Silu{});
    case 4: return use(Hardswish{});
  }
}

// Calls `use` with a number of the kind that `bfloat` tells.
template <class Use>
void with_number(long bfloat, Use&& use) {
  if (bfloat) use(Bfloat{});
  else use(float{});
}

// Calls `use` with both.
template <class Use>
void with_kinds(long activation, long bfloat, Use&& use) {
  with_activation(activation, [&](auto kind) {
    with_number(bfloat, [&](auto number) { use(kind, number); });
  });
}

}  // namespace trimtab
