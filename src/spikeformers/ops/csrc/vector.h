// Vectors of numbers, as wide as a register: loaded from tensors and stored there.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "number.h"
#include "rows.h"
#include "stream.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

template <class Real>
using Vector = typename VectorOf<Real>::type;
template <class Real>
constexpr int64_t LANES = VECTOR_BYTES / sizeof(Real);

// factor * x + sum, rounded once.
inline Vector<float> fused(float factor, Vector<float> x, Vector<float> sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(_mm512_set1_ps(factor), x, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(_mm256_set1_ps(factor), x, sum);
#elif defined(__aarch64__)
  return vfmaq_n_f32(sum, x, factor);
#else
  for (int i = 0; i < LANES<float>; ++i) sum[i] = std::fma(factor, x[i], sum[i]);
  return sum;
#endif
}
inline Vector<double> fused(double factor, Vector<double> x, Vector<double> sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(_mm512_set1_pd(factor), x, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(_mm256_set1_pd(factor), x, sum);
#elif defined(__aarch64__)
  return vfmaq_n_f64(sum, x, factor);
#else
  for (int i = 0; i < LANES<double>; ++i) sum[i] = std::fma(factor, x[i], sum[i]);
  return sum;
#endif
}

// Numbers of 16 bits are widened and narrowed as number.h does it, a vector at a time.
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

template <class Stored>
inline Vector<Wide<Stored>> load(const Stored* from) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return reinterpret_cast<Vector<float>>(__builtin_convertvector(halves, Words) << 16);
  } else {
    Vector<Stored> values;
    std::memcpy(&values, from, sizeof values);
    return values;
  }
}

template <class Stored>
inline void save(Stored* to, const Vector<Wide<Stored>>& values, bool large) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    const Words bits = reinterpret_cast<Words>(values);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words is_nan = reinterpret_cast<Words>((bits & 0x7fffffff) > 0x7f800000);
    const Halves halves = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Halves);
    std::memcpy(to, &halves, sizeof halves);
  } else {
    store_vector(to, values, large);
  }
}

// The same for the last vector of a row, of which only `count` numbers exist; the rest is zero.
template <class Stored>
inline Vector<Wide<Stored>> load(const Stored* from, int64_t count) {
  constexpr int64_t lanes = LANES<Wide<Stored>>;
  if (count >= lanes) return load(from);
  Stored part[lanes] = {};
  std::copy_n(from, count, part);
  return load(part);
}

template <class Stored>
inline void save(Stored* to, const Vector<Wide<Stored>>& values, int64_t count, bool large) {
  constexpr int64_t lanes = LANES<Wide<Stored>>;
  if (count >= lanes) return save(to, values, large);
  Stored part[lanes];
  save(part, values, false);
  std::copy_n(part, count, to);
}
