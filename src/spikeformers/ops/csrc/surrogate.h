// The surrogate derivatives of ops/surrogate.py: slopes in place of the step function's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "four.h"

template <class Real>
struct Format;  // how a number is made, and how many terms of a series it can show
template <>
struct Format<float> {
  static constexpr int mantissa = 23, lowest_exponent = -125, last_term = 6;
};
template <>
struct Format<double> {
  static constexpr int mantissa = 52, lowest_exponent = -1021, last_term = 13;
};

constexpr double LOG_2 = 0.693147180559945309417;
constexpr double term_of_power(int k) { return k < 1 ? 1 : term_of_power(k - 1) * LOG_2 / k; }

// 2^f for |f| <= 1/2, by its power series.
template <class Real, int K = 0>
inline Four<Real> power_series(const Four<Real>& f) {
  constexpr Real term = static_cast<Real>(term_of_power(K));
  if constexpr (K == Format<Real>::last_term) {
    return term;
  } else {
    return term + f * power_series<Real, K + 1>(f);
  }
}

// x 2^n, where n are the lowest bits of `shifted`.
template <class Real>
inline Vector<Real> scale(Vector<Real> x, Vector<Real> shifted) {
  const Bits<Real> n = reinterpret_cast<Bits<Real>>(shifted);
  return reinterpret_cast<Vector<Real>>(reinterpret_cast<Bits<Real>>(x) +
                                        (n << Format<Real>::mantissa));
}

// 2^x = 2^n 2^f for x between the lowest exponent and 0.
template <class Real>
inline Four<Real> power_of_2(const Four<Real>& x) {
  constexpr Real rounder = static_cast<Real>(uint64_t{3} << (Format<Real>::mantissa - 1));
  const Four<Real> shifted = x + rounder;
  const Four<Real> power = power_series<Real>(x - (shifted - rounder));
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

// The order of SURROGATES in ops/surrogate.py.
enum Surrogate : int32_t { ATAN, RECTANGLE, SIGMOID, STRAIGHT_THROUGH, TANH };

// run(slope), where slope(u) is the surrogate derivative at u = h - threshold.
template <class Real, class Run>
inline int with_surrogate(int32_t surrogate, double sharpness, const Run& run) {
  using Numbers = Four<Real>;
  const Real alpha = static_cast<Real>(sharpness);
  // height e / (1 + e)^2 with e = exp(-narrowness |u|), the derivative of a logistic function, and
  // zero past `reach`. One function for two surrogates, because each takes compilers long.
  const auto with_bell = [&](double height, double narrowness, double reach) {
    const Real h = static_cast<Real>(height), octaves = static_cast<Real>(narrowness / LOG_2);
    const Real end = std::max(static_cast<Real>(-reach), Format<Real>::lowest_exponent / octaves);
    return run([=](Numbers u) {
      const Numbers down = below_zero(u), e = power_of_2(down * octaves);
      return choose(down < Numbers(end), 0, h * e / ((1 + e) * (1 + e)));
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
      return with_bell(sharpness, sharpness, INFINITY);
    case STRAIGHT_THROUGH:
      return run([](Numbers) { return Numbers(1); });
    default:  // 1 - tanh(z)^2 is four times the bell at 2 z
      return with_bell(2 * sharpness / std::tanh(sharpness), 2 * sharpness, 1);
  }
}
