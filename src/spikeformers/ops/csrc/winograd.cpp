// Convolution with 3x3 kernels by Winograd's algorithm: 36 products instead of 144 give a tile of
// 4x4 outputs from the window of 6x6 inputs that it sees. With fixed matrices A, B and G,
//
//   y = A^T [(G g G^T) * (B^T d B)] A    for the kernel g, the window d and the tile y.
//
// Each of the 36 positions of a transformed window is a plane. Summed over the channels, the
// products of a plane are a matrix product, [tiles, channels] x [channels, outputs]. A strip of few
// tiles is taken through all steps at once, one panel of outputs after the other, while its planes
// lie in the second cache.
//
// Products are added without being rounded first, which doubles the speed where a processor has an
// instruction for it; baseline x86-64 has none, there this is exact but slow.
#include "conv.h"
#include "export.h"
#include "number.h"
#include "parallel.h"
#include "vector.h"

namespace {

constexpr int TAPS = 3, TILE = 4, WINDOW = TILE + TAPS - 1, PLANES = WINDOW * WINDOW;

// The sums of a strip of tiles and a panel, some vectors of outputs, fill the registers.
constexpr int PANEL = 2;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int STRIP = 12;
#else
constexpr int STRIP = 6;
#endif

// Polynomials are interpolated at 0, P, -P, Q, -Q and infinity. With these P and Q the result
// rounds least, by a factor of two against 1 and 2, and their powers are exact.
constexpr double P = 0.625, Q = 1.5, P2 = P * P, Q2 = Q * Q;

// The transforms along one axis. Values at P and -P share their even and odd parts.
struct OfKernels {  // G
  static constexpr int from = TAPS, to = WINDOW;
  template <class Real>
  static void apply(const Vector<Real>* g, Vector<Real>* out) {
    constexpr Real at_0 = 1 / (P2 * Q2), at_p = 1 / (2 * P2 * (P2 - Q2));
    constexpr Real at_q = 1 / (2 * Q2 * (Q2 - P2));
    const Vector<Real> even_p = (g[0] + Real(P2) * g[2]) * at_p, odd_p = g[1] * (Real(P) * at_p);
    const Vector<Real> even_q = (g[0] + Real(Q2) * g[2]) * at_q, odd_q = g[1] * (Real(Q) * at_q);
    out[0] = g[0] * at_0;
    out[1] = even_p + odd_p;
    out[2] = even_p - odd_p;
    out[3] = even_q + odd_q;
    out[4] = even_q - odd_q;
    out[5] = g[2];
  }
};

struct OfWindows {  // B^T
  static constexpr int from = WINDOW, to = WINDOW;
  template <class Real>
  static void apply(const Vector<Real>* d, Vector<Real>* out) {
    const Vector<Real> even_p = d[4] - Real(Q2) * d[2], odd_p = d[3] - Real(Q2) * d[1];
    const Vector<Real> even_q = d[4] - Real(P2) * d[2], odd_q = d[3] - Real(P2) * d[1];
    out[0] = d[4] - Real(P2 + Q2) * d[2] + Real(P2 * Q2) * d[0];
    out[1] = even_p + Real(P) * odd_p;
    out[2] = even_p - Real(P) * odd_p;
    out[3] = even_q + Real(Q) * odd_q;
    out[4] = even_q - Real(Q) * odd_q;
    out[5] = d[5] - Real(P2 + Q2) * d[3] + Real(P2 * Q2) * d[1];
  }
};

struct OfProducts {  // A^T
  static constexpr int from = WINDOW, to = TILE;
  template <class Real>
  static void apply(const Vector<Real>* m, Vector<Real>* out) {
    const Vector<Real> even_p = m[1] + m[2], odd_p = m[1] - m[2];
    const Vector<Real> even_q = m[3] + m[4], odd_q = m[3] - m[4];
    out[0] = m[0] + even_p + even_q;
    out[1] = Real(P) * odd_p + Real(Q) * odd_q;
    out[2] = Real(P2) * even_p + Real(Q2) * even_q;
    out[3] = Real(P * P2) * odd_p + Real(Q * Q2) * odd_q + m[5];
  }
};

// A transform along both axes: in(i, j) gives the values, out(i, j, value) takes the results.
template <class Transform, class Real, class In, class Out>
inline void transform(const In& in, const Out& out) {
  constexpr int from = Transform::from, to = Transform::to;
  Vector<Real> half[to][from];
#pragma GCC unroll 6
  for (int i = 0; i < from; ++i) {
    Vector<Real> row[from], result[to];
    for (int j = 0; j < from; ++j) row[j] = in(i, j);
    Transform::template apply<Real>(row, result);
    for (int j = 0; j < to; ++j) half[j][i] = result[j];
  }
#pragma GCC unroll 6
  for (int j = 0; j < to; ++j) {
    Vector<Real> result[to];
    Transform::template apply<Real>(half[j], result);
    for (int i = 0; i < to; ++i) out(i, j, result[i]);
  }
}

// How a convolution is cut: images into tiles, channels into vectors, outputs into panels.
template <class Real>
struct Cut {
  const Conv& conv;
  int64_t rows, columns, tiles, groups, panels;

  explicit Cut(const Conv& conv)
      : conv(conv),
        rows((conv.out_height + TILE - 1) / TILE),
        columns((conv.out_width + TILE - 1) / TILE),
        tiles(conv.images * rows * columns),
        groups((conv.channels + LANES<Real> - 1) / LANES<Real>),
        panels((conv.outputs + PANEL * LANES<Real> - 1) / (PANEL * LANES<Real>)) {}

  int64_t strips() const { return (tiles + STRIP - 1) / STRIP; }
  // In vectors. An odd number lets a cache hold the same position of all planes.
  int64_t plane_of_weights() const { return groups * LANES<Real> * PANEL; }
  int64_t plane_of_windows() const { return groups * STRIP | 1; }
};

// Where the outputs of a tile begin.
struct Place {
  int64_t image, y, x;

  template <class Real>
  Place(const Cut<Real>& cut, int64_t tile)
      : image(tile / (cut.rows * cut.columns)),
        y(tile / cut.columns % cut.rows * TILE),
        x(tile % cut.columns * TILE) {}
};

// [O, C, 3, 3] -> [panel][plane][channel][vector of the panel]
template <class Stored, class Real = Wide<Stored>>
int transform_weights(const Stored* weight, const Cut<Real>& cut, Vector<Real>* to) {
  constexpr int64_t lanes = LANES<Real>, taps = TAPS * TAPS;
  const Conv& conv = cut.conv;
  const int64_t plane = cut.plane_of_weights();
  return parallel_for(cut.panels * cut.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * lanes * PANEL; at < end * lanes * PANEL; ++at) {
      const int64_t panel = at / plane, c = at % plane / PANEL;
      const int64_t first = (panel * PANEL + at % PANEL) * lanes;
      const int64_t outputs = c < conv.channels ? conv.outputs - first : 0;
      Vector<Real> kernel[taps] = {};
      for (int64_t o = 0; o < std::min(lanes, outputs); ++o)
        for (int64_t tap = 0; tap < taps; ++tap)
          kernel[tap][o] = widen(weight[((first + o) * conv.channels + c) * taps + tap]);
      Vector<Real>* const of_panel = to + panel * PLANES * plane + at % plane;
      transform<OfKernels, Real>(
          [&](int i, int j) { return kernel[i * TAPS + j]; },
          [&](int i, int j, const Vector<Real>& value) {
            of_panel[(i * WINDOW + j) * plane] = value;
          });
    }
  });
}

// Where the pixels of a strip's windows are: [plane][tile of the strip].
template <class Stored>
using Pixels = const Stored* [PLANES][STRIP];

// Tiles that the last strip lacks see what is `outside` of images, and nobody looks at the result.
template <class Stored, class Real = Wide<Stored>>
void find_pixels(const Stored* x, const Stored* outside, int64_t first, const Cut<Real>& cut,
                 Pixels<Stored>& pixels) {
  const Conv& conv = cut.conv;
  for (int64_t t = 0; t < STRIP; ++t) {
    const Place place(cut, first + t);
    for (int i = 0; i < WINDOW; ++i)
      for (int j = 0; j < WINDOW; ++j) {
        const int64_t row = place.y + i - conv.padding, column = place.x + j - conv.padding;
        const bool inside = first + t < cut.tiles && row >= 0 && row < conv.height && column >= 0 &&
                            column < conv.width;
        const int64_t position = (place.image * conv.height + row) * conv.width + column;
        pixels[i * WINDOW + j][t] = inside ? x + position * conv.channels : outside;
      }
  }
}

// The windows of a strip -> [plane][group of channels][tile of the strip]
template <class Stored, class Real = Wide<Stored>>
void transform_windows(const Pixels<Stored>& pixels, const Cut<Real>& cut, Vector<Real>* to) {
  const int64_t channels = cut.conv.channels, plane = cut.plane_of_windows();
  for (int64_t c = 0, at = 0; c < channels; c += LANES<Real>)
    for (int64_t t = 0; t < STRIP; ++t, ++at)
      transform<OfWindows, Real>(
          [&](int i, int j) { return load(pixels[i * WINDOW + j][t] + c, channels - c); },
          [=](int i, int j, const Vector<Real>& value) {
            to[(i * WINDOW + j) * plane + at] = value;
          });
}

// A plane of a strip, [group][tile][channel], times that of a panel of weights -> [tile][vector].
// Meanwhile memory brings pixels of the next strip. A function of its own, whose sums stay in
// registers if every loop over them is unrolled.
template <class Stored, class Real = Wide<Stored>>
__attribute__((noinline)) void multiply(const Real* window, const Vector<Real>* weight,
                                        const Cut<Real>& cut, const Stored* const* next,
                                        Vector<Real>* to) {
  constexpr int64_t lanes = LANES<Real>;
  Vector<Real> sum[STRIP][PANEL];
#pragma GCC unroll 12
  for (int tile = 0; tile < STRIP; ++tile)
    for (int i = 0; i < PANEL; ++i) sum[tile][i] = Vector<Real>{};
  for (int64_t group = 0; group < cut.groups; ++group, window += STRIP * lanes) {
    for (int tile = 0; tile < STRIP; ++tile) __builtin_prefetch(next[tile] + group * lanes);
    for (int64_t c = 0; c < lanes; ++c, weight += PANEL)
      for (int tile = 0; tile < STRIP; ++tile)
        for (int i = 0; i < PANEL; ++i)
          sum[tile][i] = fused(window[tile * lanes + c], weight[i], sum[tile][i]);
  }
#pragma GCC unroll 12
  for (int tile = 0; tile < STRIP; ++tile)
    for (int i = 0; i < PANEL; ++i) to[tile * PANEL + i] = sum[tile][i];
}

// [plane][tile of the strip][vector of the panel] -> the outputs of a panel
template <class Stored, class Real = Wide<Stored>>
void transform_products(const Vector<Real>* products, int64_t first, int64_t panel,
                        const Cut<Real>& cut, Stored* out, bool large) {
  const Conv& conv = cut.conv;
  for (int64_t t = 0; t < std::min<int64_t>(STRIP, cut.tiles - first); ++t) {
    const Place place(cut, first + t);
    const int64_t position = (place.image * conv.out_height + place.y) * conv.out_width + place.x;
    for (int64_t at = t * PANEL; at < (t + 1) * PANEL; ++at) {
      const int64_t o = (panel * PANEL + at % PANEL) * LANES<Real>;
      if (o >= conv.outputs) break;
      transform<OfProducts, Real>(
          [&](int i, int j) { return products[(i * WINDOW + j) * STRIP * PANEL + at]; },
          [&](int i, int j, const Vector<Real>& value) {
            if (place.y + i < conv.out_height && place.x + j < conv.out_width)
              save(out + (position + i * conv.out_width + j) * conv.outputs + o, value,
                   conv.outputs - o, large);
          });
    }
  }
}

template <class Stored>
int convolve(const Stored* x, const Stored* weight, Stored* out, const Conv& conv) {
  using Real = Wide<Stored>;
  const Cut<Real> cut(conv);
  const int64_t positions = conv.images * conv.out_height * conv.out_width;
  const int64_t window_plane = cut.plane_of_windows(), weight_plane = cut.plane_of_weights();
  const bool large = is_large<Stored>(positions * conv.outputs);
  const auto weights = make_aligned<Vector<Real>>(cut.panels * PLANES * weight_plane);
  if (transform_weights(weight, cut, weights.get())) return 1;
  return parallel_for(cut.strips(), 1, [&](int64_t begin, int64_t end) {
    const auto windows = make_aligned<Vector<Real>>(PLANES * window_plane);
    const auto products = make_aligned<Vector<Real>>(PLANES * STRIP * PANEL);
    const auto outside = make_aligned<Stored>(conv.channels);
    std::fill_n(outside.get(), conv.channels, Stored{});
    Pixels<Stored> pixels;
    find_pixels(x, outside.get(), begin * STRIP, cut, pixels);
    for (int64_t first = begin * STRIP; first < end * STRIP; first += STRIP) {
      transform_windows(pixels, cut, windows.get());
      find_pixels(x, outside.get(), first + STRIP, cut, pixels);
      for (int64_t panel = 0; panel < cut.panels; ++panel) {
        for (int64_t plane = 0; plane < PLANES; ++plane)
          multiply(reinterpret_cast<const Real*>(windows.get() + plane * window_plane),
                   weights.get() + (panel * PLANES + plane) * weight_plane, cut, pixels[plane],
                   products.get() + plane * STRIP * PANEL);
        transform_products(products.get(), first, panel, cut, out, large);
      }
    }
  });
}

}  // namespace

EXPORT int winograd_conv(int32_t dtype, const Conv* conv, const void* x, const void* weight,
                         void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return unless_out_of_memory([&] {
      return convolve(static_cast<const Stored*>(x), static_cast<const Stored*>(weight),
                      static_cast<Stored*>(out), *conv);
    });
  });
}
