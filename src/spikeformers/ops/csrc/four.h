// Four vectors of numbers side by side: while one of them waits for a result, a processor computes
// with the others. Formulas read as those of a single number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "number.h"
#include "stream.h"
#include "vector.h"

template <class Real>
constexpr int64_t FOUR = 4 * LANES<Real>;  // numbers

// The bits of a vector's numbers.
template <class Real>
using Bits = Vector<std::conditional_t<sizeof(Real) == 4, uint32_t, uint64_t>>;

template <class Real>
struct Four {
  Vector<Real> a, b, c, d;

  Four() = default;
  Four(Vector<Real> a, Vector<Real> b, Vector<Real> c, Vector<Real> d) : a(a), b(b), c(c), d(d) {}
  // One number everywhere; taking 0 away keeps even the sign of a zero.
  Four(Real x) : a(x - Vector<Real>{}), b(a), c(a), d(a) {}

  friend Four operator+(const Four& x, const Four& y) {
    return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d};
  }
  friend Four operator-(const Four& x, const Four& y) {
    return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d};
  }
  friend Four operator*(const Four& x, const Four& y) {
    return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d};
  }
  friend Four operator/(const Four& x, const Four& y) {
    return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d};
  }
};

// run(vector, ...) for each of the four.
template <class Run, class Real, class... Others>
inline Four<Real> each(const Run& run, const Four<Real>& x, const Others&... others) {
  return {run(x.a, others.a...), run(x.b, others.b...), run(x.c, others.c...),
          run(x.d, others.d...)};
}

// Which numbers of a Four something is true of: all bits of their lanes are set.
template <class Real>
struct Mask {
  using Lanes = decltype(Vector<Real>{} < Vector<Real>{});
  Lanes a, b, c, d;

  friend Four<Real> choose(const Mask& mask, const Four<Real>& yes, const Four<Real>& no) {
    return {mask.a ? yes.a : no.a, mask.b ? yes.b : no.b, mask.c ? yes.c : no.c,
            mask.d ? yes.d : no.d};
  }
};

template <class Real>
inline Mask<Real> operator<(const Four<Real>& x, const Four<Real>& y) {
  return {x.a < y.a, x.b < y.b, x.c < y.c, x.d < y.d};
}
template <class Real>
inline Mask<Real> operator>=(const Four<Real>& x, const Four<Real>& y) {
  return {x.a >= y.a, x.b >= y.b, x.c >= y.c, x.d >= y.d};
}

// Spikes that are the lowest bits of a word, one for each lane.
template <class Real>
inline Mask<Real> mask_of(uint64_t spikes) {
  using Word = std::remove_reference_t<decltype(Bits<Real>{}[0])>;
  constexpr Word bit_of_lane[] = {1 << 0,  1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                  1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                  1 << 12, 1 << 13, 1 << 14, 1 << 15};
  const Bits<Real> bit = load(bit_of_lane);
  const auto lanes = [&](int vector) {
    return (bit & static_cast<Word>(spikes >> (vector * LANES<Real>))) != 0;
  };
  return {lanes(0), lanes(1), lanes(2), lanes(3)};
}

// A bit for each lane of a mask.
template <class Real>
inline uint64_t bits_of(typename Mask<Real>::Lanes lanes) {
  constexpr bool is_float = sizeof(Real) == 4;
#if defined(__AVX512F__)
  const auto all = reinterpret_cast<__m512i>(lanes);
  return is_float ? _mm512_test_epi32_mask(all, all) : _mm512_test_epi64_mask(all, all);
#elif defined(__AVX2__)
  return is_float ? _mm256_movemask_ps(reinterpret_cast<__m256>(lanes))
                  : _mm256_movemask_pd(reinterpret_cast<__m256d>(lanes));
#elif defined(__SSE2__)
  return is_float ? _mm_movemask_ps(reinterpret_cast<__m128>(lanes))
                  : _mm_movemask_pd(reinterpret_cast<__m128d>(lanes));
#else
  uint64_t bits = 0;
  for (int i = 0; i < LANES<Real>; ++i) bits |= (lanes[i] & uint64_t{1}) << i;
  return bits;
#endif
}

// The inverse of mask_of.
template <class Real>
inline uint64_t bits_of(const Mask<Real>& mask) {
  constexpr int lanes = LANES<Real>;
  return bits_of<Real>(mask.a) | bits_of<Real>(mask.b) << lanes |
         bits_of<Real>(mask.c) << 2 * lanes | bits_of<Real>(mask.d) << 3 * lanes;
}

// The first `count` numbers from `from`; the rest is zero.
template <class Stored>
inline Four<Wide<Stored>> load_four(const Stored* from, int64_t count) {
  constexpr int64_t lanes = LANES<Wide<Stored>>;
  return {load(from, count), load(from + lanes, count - lanes),
          load(from + 2 * lanes, count - 2 * lanes), load(from + 3 * lanes, count - 3 * lanes)};
}

template <class Stored>
inline void save_four(Stored* to, const Four<Wide<Stored>>& x, int64_t count, bool large) {
  constexpr int64_t lanes = LANES<Wide<Stored>>;
  const auto save_all = [&x](Stored* to, int64_t count, bool large) {
    save(to, x.a, count, large);
    save(to + lanes, x.b, count - lanes, large);
    save(to + 2 * lanes, x.c, count - 2 * lanes, large);
    save(to + 3 * lanes, x.d, count - 3 * lanes, large);
  };
  if constexpr (sizeof(Stored) == sizeof(Wide<Stored>)) {
    save_all(to, count, large);
  } else {
    alignas(LINE) Stored part[4 * lanes];  // numbers of 16 bits fill a line only together
    save_all(part, 4 * lanes, false);
    store(to, part, std::min<int64_t>(count, 4 * lanes), large);
  }
}

template <class Real>  // sum += x
inline void add_to(Real* sum, const Four<Real>& x, int64_t count) {
  save_four(sum, load_four(sum, count) + x, count, false);
}

// run(first, count) over `total` numbers: whole fours, whose number of numbers the compiler knows,
// and the rest. The function around it is `FLAT`: all that it calls is inlined, so that what
// formulas hand on stays in registers.
#define FLAT __attribute__((flatten))
template <class Real, class Run>
inline void in_fours(int64_t total, const Run& run) {
  constexpr std::integral_constant<int64_t, FOUR<Real>> whole;
  int64_t i = 0;
  for (; i + whole <= total; i += whole) run(i, whole);
  if (i < total) run(i, total - i);
}
