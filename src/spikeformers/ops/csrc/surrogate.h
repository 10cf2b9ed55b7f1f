// The surrogate derivatives of ops/surrogate.py: slopes in place of the step function's.
#pragma once

#include <cmath>
#include <cstdint>

#include "four.h"

template <class Real>
struct Format;  // how a number is made, and how many terms of a series it can show
template <>
struct Format<float> {
  static constexpr int mantissa = 23, last_term = 7;
  static constexpr float lowest = -86, log2_high = 0.693359375f, log2_low = -2.12194440e-4f;
};
template <>
struct Format<double> {
  static constexpr int mantissa = 52, last_term = 13;
  static constexpr double lowest = -700, log2_high = 6.93147180369123816490e-01,
                          log2_low = 1.90821492927058770002e-10;
};

constexpr double inverse_factorial(int k) { return k < 2 ? 1 : inverse_factorial(k - 1) / k; }

// e^r for |r| <= log(2)/2, by its power series.
template <class Real, int K = 0>
inline Four<Real> exp_series(const Four<Real>& r) {
  constexpr Real term = static_cast<Real>(inverse_factorial(K));
  if constexpr (K == Format<Real>::last_term) {
    return term;
  } else {
    return term + r * exp_series<Real, K + 1>(r);
  }
}

// x 2^n, where n are the lowest bits of `shifted`.
template <class Real>
inline Vector<Real> scale(Vector<Real> x, Vector<Real> shifted) {
  const Bits<Real> n = reinterpret_cast<Bits<Real>>(shifted);
  return reinterpret_cast<Vector<Real>>(reinterpret_cast<Bits<Real>>(x) +
                                        (n << Format<Real>::mantissa));
}

// e^x for x <= 0 as 2^n e^r; log(2) in two parts, so that r is x - n log(2) to the last bit.
template <class Real>
inline Four<Real> exp_below_zero(Four<Real> x) {
  using F = Format<Real>;
  constexpr Real rounder = static_cast<Real>(uint64_t{3} << (F::mantissa - 1));  // 1.5 * 2^mantissa
  x = choose(x < Four<Real>(F::lowest), F::lowest, x);
  const Four<Real> shifted = x * static_cast<Real>(1.44269504088896340736) + rounder;
  const Four<Real> n = shifted - rounder;
  const Four<Real> power = exp_series<Real>((x - n * F::log2_high) - n * F::log2_low);
  return {scale<Real>(power.a, shifted.a), scale<Real>(power.b, shifted.b),
          scale<Real>(power.c, shifted.c), scale<Real>(power.d, shifted.d)};
}

// -|z|, number by number: the highest bit is the sign.
template <class Real>
inline Vector<Real> below_zero(Vector<Real> z) {
  return reinterpret_cast<Vector<Real>>(reinterpret_cast<Bits<Real>>(z) |
                                        reinterpret_cast<Bits<Real>>(-Vector<Real>{}));
}

template <class Real>
inline Four<Real> below_zero(const Four<Real>& z) {
  return {below_zero<Real>(z.a), below_zero<Real>(z.b), below_zero<Real>(z.c),
          below_zero<Real>(z.d)};
}

// Derivative of the logistic function at z; even in z.
template <class Real>
inline Four<Real> bell(const Four<Real>& z) {
  const Four<Real> e = exp_below_zero(below_zero(z));
  return e / ((1 + e) * (1 + e));
}

// The order of SURROGATES in ops/surrogate.py.
enum Surrogate : int32_t { ATAN, RECTANGLE, SIGMOID, STRAIGHT_THROUGH, TANH };

// run(slope), where slope(u) is the surrogate derivative at u = h - threshold.
template <class Real, class Run>
inline int with_surrogate(int32_t surrogate, double sharpness, const Run& run) {
  using Numbers = Four<Real>;
  const Real alpha = static_cast<Real>(sharpness);
  // One function for two surrogates, because each takes compilers long. It is zero past `reach`.
  const auto with_bell = [&](Real height, Real narrowness, Real reach) {
    return run([=](Numbers u) {
      return choose(below_zero(u) < Numbers(-reach), 0, height * bell(narrowness * u));
    });
  };
  switch (surrogate) {
    case ATAN: {
      const Real half = alpha / 2, scale = static_cast<Real>(3.14159265358979323846 / 2) * alpha;
      return run([=](Numbers u) { return half / (1 + (scale * u) * (scale * u)); });
    }
    case RECTANGLE: {
      const Real reach = static_cast<Real>(0.5) / alpha;
      return run([=](Numbers u) { return choose(Numbers(-reach) < below_zero(u), alpha, 0); });
    }
    case SIGMOID:
      return with_bell(alpha, alpha, static_cast<Real>(INFINITY));
    case STRAIGHT_THROUGH:
      return run([](Numbers) { return Numbers(1); });
    default:  // 1 - tanh(z)^2 = 4 bell(2 z)
      return with_bell(static_cast<Real>(2 * sharpness / std::tanh(sharpness)), 2 * alpha, 1);
  }
}
