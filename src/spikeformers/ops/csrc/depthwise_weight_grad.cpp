// Weight gradient of a depthwise convolution: each channel and kernel tap is a sum of products over
// all positions. A vector holds as many channels as it can, registers the taps of a kernel row.
//
// Rows of output are cut into chunks, whose sums are formed apart and then added up in their order:
// neither threads nor the width of vectors change what a channel sees.
#include "conv.h"
#include "export.h"
#include "number.h"
#include "parallel.h"

namespace {

// Positions of a chunk: few enough for the second cache.
constexpr int64_t CHUNK_POSITIONS = 1024;
// Taps of a kernel row whose sums registers hold at once.
constexpr int64_t MOST_TAPS = 8;

template <class Real>
using Vector = typename VectorOf<Real>::type;
template <class Real>
constexpr int64_t LANES = VECTOR_BYTES / sizeof(Real);

// Some channels of an image.
template <class Stored>
struct Image {
  const Stored* values;
  int64_t height, width, pitch, channels;  // from one position to the next; those that are meant
};

// Copies rows `first` .. `last` of an image with `side` columns more on both sides; zeros outside.
template <class Stored>
void pad(const Image<Stored>& image, int64_t first, int64_t last, int64_t side,
         Wide<Stored>* __restrict to) {
  constexpr int64_t lanes = LANES<Wide<Stored>>, ahead = 16;
  for (int64_t y = first; y < last; ++y)
    for (int64_t x = -side; x < image.width + side; ++x, to += lanes) {
      const bool inside = y >= 0 && y < image.height && x >= 0 && x < image.width;
      const int64_t channels = inside ? image.channels : 0;
      const Stored* from = image.values + (inside ? (y * image.width + x) * image.pitch : 0);
      if (channels == lanes) {
        __builtin_prefetch(from + ahead * image.pitch);
        for (int64_t c = 0; c < lanes; ++c) to[c] = widen(from[c]);
      } else {
        for (int64_t c = 0; c < channels; ++c) to[c] = widen(from[c]);
        std::fill(to + channels, to + lanes, Wide<Stored>(0));
      }
    }
}

// sums[tap] = sum over rows and columns of grad[row][column] x[row * stride][column * stride + tap]
template <class Real, int taps>
void add_products(const Vector<Real>* grad, const Vector<Real>* x, int64_t rows,
                  int64_t row_length, const Conv& conv, Vector<Real>* sums) {
  Vector<Real> total[taps] = {};
  for (int64_t row = 0; row < rows; ++row, x += conv.stride * row_length) {
    const Vector<Real>* seen = x;
    for (int64_t column = 0; column < conv.out_width; ++column, ++grad, seen += conv.stride)
      for (int tap = 0; tap < taps; ++tap) total[tap] += *grad * seen[tap];
  }
  std::copy_n(total, taps, sums);
}

template <class Real>
using AddProducts = void (*)(const Vector<Real>*, const Vector<Real>*, int64_t, int64_t,
                             const Conv&, Vector<Real>*);
template <class Real>
AddProducts<Real> add_products_of(int64_t taps) {
  constexpr AddProducts<Real> known[MOST_TAPS] = {
      add_products<Real, 1>, add_products<Real, 2>, add_products<Real, 3>, add_products<Real, 4>,
      add_products<Real, 5>, add_products<Real, 6>, add_products<Real, 7>, add_products<Real, 8>};
  return known[taps - 1];
}

// A chunk of output rows, for the channels of one vector.
template <class Stored>
void add_chunk(const Image<Stored>& x, const Image<Stored>& grad, int64_t first, int64_t last,
               const Conv& conv, Wide<Stored>* seen, Wide<Stored>* received, Wide<Stored>* sums) {
  using Real = Wide<Stored>;
  const int64_t first_input = first * conv.stride - conv.padding;
  const int64_t last_input = first_input + (last - first - 1) * conv.stride + conv.kernel;
  pad(x, first_input, last_input, conv.padding, seen);
  pad(grad, first, last, 0, received);
  const int64_t row_length = conv.width + 2 * conv.padding;
  for (int64_t i = 0; i < conv.kernel; ++i)
    for (int64_t j = 0; j < conv.kernel; j += MOST_TAPS) {
      const int64_t taps = std::min(MOST_TAPS, conv.kernel - j);
      add_products_of<Real>(taps)(
          reinterpret_cast<const Vector<Real>*>(received),
          reinterpret_cast<const Vector<Real>*>(seen) + i * row_length + j, last - first,
          row_length, conv, reinterpret_cast<Vector<Real>*>(sums));
      sums += taps * LANES<Real>;
    }
}

template <class Stored>
int weight_grad(const Stored* x, const Stored* grad, Wide<Stored>* out, const Conv& conv) {
  using Real = Wide<Stored>;
  constexpr int64_t lanes = LANES<Real>;
  const int64_t taps = conv.kernel * conv.kernel, groups = (conv.channels + lanes - 1) / lanes;
  const int64_t rows = std::max<int64_t>(1, CHUNK_POSITIONS / std::max<int64_t>(1, conv.out_width));
  const int64_t chunks = (conv.out_height + rows - 1) / rows;  // of an image
  const int64_t input_rows = (rows - 1) * conv.stride + conv.kernel;
  const auto parts = make_aligned<Real>(conv.images * chunks * groups * taps * lanes);
  const auto add = [&](int64_t begin, int64_t end) {
    const auto seen = make_aligned<Real>(input_rows * (conv.width + 2 * conv.padding) * lanes);
    const auto received = make_aligned<Real>(rows * conv.out_width * lanes);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t c = job % groups * lanes, first = job / groups % chunks * rows;
      const int64_t image = job / groups / chunks, used = std::min(lanes, conv.channels - c);
      const int64_t size = conv.height * conv.width, out_size = conv.out_height * conv.out_width;
      add_chunk<Stored>({x + image * size * conv.channels + c, conv.height, conv.width,
                         conv.channels, used},
                        {grad + image * out_size * conv.channels + c, conv.out_height,
                         conv.out_width, conv.channels, used},
                        first, std::min(first + rows, conv.out_height), conv, seen.get(),
                        received.get(), parts.get() + job * taps * lanes);
    }
  };
  if (parallel_for(conv.images * chunks * groups, 1, add)) return 1;
  std::fill_n(out, conv.channels * taps, Real(0));
  for (int64_t chunk = 0; chunk < conv.images * chunks; ++chunk)
    for (int64_t c = 0; c < conv.channels; ++c)
      for (int64_t tap = 0; tap < taps; ++tap)
        out[c * taps + tap] +=
            parts[((chunk * groups + c / lanes) * taps + tap) * lanes + c % lanes];
  return 0;
}

}  // namespace

EXPORT int depthwise_weight_grad(int32_t dtype, const Conv* conv, const void* x, const void* grad,
                                 void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return unless_out_of_memory([&] {
      return weight_grad(static_cast<const Stored*>(x), static_cast<const Stored*>(grad),
                         static_cast<Wide<Stored>*>(out), *conv);
    });
  });
}
