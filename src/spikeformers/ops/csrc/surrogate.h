// The surrogate derivatives of ops/surrogate.py: slopes in place of the step function's.
#pragma once

#include <cmath>
#include <cstdint>

#include "number.h"

template <class Real>
struct Format;  // how a number is made, and how many terms of a series it can show
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, last_term = 7;
  static constexpr float lowest = -86, log2_high = 0.693359375f, log2_low = -2.12194440e-4f;
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, last_term = 13;
  static constexpr double lowest = -700, log2_high = 6.93147180369123816490e-01,
                          log2_low = 1.90821492927058770002e-10;
};

constexpr double inverse_factorial(int k) { return k < 2 ? 1 : inverse_factorial(k - 1) / k; }

// e^r for |r| <= log(2)/2, by its power series.
template <class Real, int K = 0>
inline Real exp_series(Real r) {
  constexpr Real term = static_cast<Real>(inverse_factorial(K));
  if constexpr (K == Format<Real>::last_term) {
    return term;
  } else {
    return term + r * exp_series<Real, K + 1>(r);
  }
}

// e^x for x <= 0 as 2^n e^r; log(2) in two parts, so that r is x - n log(2) to the last bit.
template <class Real>
inline Real exp_below_zero(Real x) {
  using F = Format<Real>;
  using Bits = typename F::Bits;
  constexpr Real rounder = static_cast<Real>(Bits{3} << (F::mantissa - 1));  // 1.5 * 2^mantissa
  x = x < F::lowest ? F::lowest : x;
  const Real shifted = x * static_cast<Real>(1.44269504088896340736) + rounder;
  const Real n = shifted - rounder;
  const Real power = exp_series<Real>((x - n * F::log2_high) - n * F::log2_low);
  return bits_as<Real>(bits_as<Bits>(power) + (bits_as<Bits>(shifted) << F::mantissa));
}

// Derivative of the logistic function at z; even in z.
template <class Real>
inline Real bell(Real z) {
  const Real e = exp_below_zero(z < 0 ? z : -z);
  return e / ((1 + e) * (1 + e));
}

// The order of SURROGATES in ops/surrogate.py.
enum Surrogate : int32_t { ATAN, RECTANGLE, SIGMOID, STRAIGHT_THROUGH, TANH };

// run(slope), where slope(u) is the surrogate derivative at u = h - threshold.
template <class Real, class Run>
inline int with_surrogate(int32_t surrogate, double sharpness, const Run& run) {
  const Real alpha = static_cast<Real>(sharpness);
  switch (surrogate) {
    case ATAN: {
      const Real half = alpha / 2, scale = static_cast<Real>(3.14159265358979323846 / 2) * alpha;
      return run([=](Real u) { return half / (1 + (scale * u) * (scale * u)); });
    }
    case RECTANGLE: {
      const Real reach = static_cast<Real>(0.5) / alpha;
      return run([=](Real u) { return (u < 0 ? -u : u) < reach ? alpha : 0; });
    }
    case SIGMOID:
      return run([=](Real u) { return alpha * bell(alpha * u); });
    case STRAIGHT_THROUGH:
      return run([](Real) { return Real{1}; });
    default: {  // 1 - tanh(z)^2 = 4 bell(2 z)
      const Real peak = static_cast<Real>(2 * sharpness / std::tanh(sharpness));
      return run([=](Real u) { return (u < 0 ? -u : u) <= 1 ? peak * bell(2 * alpha * u) : 0; });
    }
  }
}
