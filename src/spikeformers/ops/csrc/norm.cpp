// The ops of norm_lif without the neuron: moments, affine maps and their gradients on [R, C].
#include <algorithm>
#include <vector>

#include "export.h"
#include "four.h"
#include "parallel.h"
#include "tiles.h"

namespace {

int64_t rows_in(const Tiles& tiles, int64_t chunk) {
  const int64_t rows = tiles.per_chunk() * tiles.rows;
  return std::min(rows, tiles.R - chunk * rows);
}

// The mean of a chunk and the sum of squares around it. Values are counted from its first row, so
// that no digits are lost to a large mean.
template <class Stored>
FLAT void moments_of(const Tiles& tiles, int64_t chunk, const Stored* y, Wide<Stored>* sums,
                     double* mean, double* square) {
  using Real = Wide<Stored>;
  const int64_t C = tiles.C, size = tiles.size(), first = chunk * tiles.per_chunk();
  const int64_t last = std::min(tiles.count, first + tiles.per_chunk());
  const int64_t rows = rows_in(tiles, chunk);
  std::vector<Real> first_row(C);
  for (int64_t c = 0; c < C; ++c) first_row[c] = widen(y[tiles.at(0, first) + c]);
  const auto origin = along_tile<Real>(tiles, first_row.data(), 0);
  std::fill_n(sums, 2 * size, Real{0});
  for (int64_t tile = first; tile < last; ++tile)
    in_fours<Real>(tiles.rows_of(tile) * C, [&](int64_t i, auto count) {
      const auto d = load_four(y + tiles.at(0, tile) + i, count) - load_four(&origin[i], count);
      add_to(sums + i, d, count);
      add_to(sums + size + i, d * d, count);
    });
  add_rows_of(tiles, sums, mean);
  add_rows_of(tiles, sums + size, square);
  for (int64_t c = 0; c < C; ++c) {
    mean[c] /= rows;
    square[c] -= mean[c] * mean[c] * rows;
    mean[c] += first_row[c];
  }
}

template <class Stored>
int moments(const Tiles& tiles, const Stored* y, Wide<Stored>* mean, Wide<Stored>* var) {
  using Real = Wide<Stored>;
  const int64_t chunks = tiles.chunks(), C = tiles.C, R = tiles.R;
  std::vector<double> means(chunks * C), squares(chunks * C), common(C), around(C);
  double *const mean_of = means.data(), *const square_of = squares.data();
  const int failed = parallel_for(chunks, 1, [=, &tiles](int64_t begin, int64_t end) {
    const auto sums = make_aligned<Real>(2 * tiles.size());
    for (int64_t chunk = begin; chunk < end; ++chunk)
      moments_of(tiles, chunk, y, sums.get(), mean_of + chunk * C, square_of + chunk * C);
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t c = 0; c < C; ++c)
      common[c] += mean_of[chunk * C + c] * rows_in(tiles, chunk) / R;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t c = 0; c < C; ++c) {
      const double apart = mean_of[chunk * C + c] - common[c];
      around[c] += square_of[chunk * C + c] + apart * apart * rows_in(tiles, chunk);
    }
  for (int64_t c = 0; c < C; ++c) {
    mean[c] = static_cast<Real>(common[c]);
    var[c] = static_cast<Real>(std::max(around[c] / R, 0.0));
  }
  return failed;
}

}  // namespace

EXPORT int channel_moments(int32_t dtype, int64_t rows, int64_t C, const void* y, void* mean,
                           void* var) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return moments(Tiles(1, rows, C), static_cast<const Stored*>(y),
                   static_cast<Wide<Stored>*>(mean), static_cast<Wide<Stored>*>(var));
  });
}

EXPORT int norm_add(int32_t dtype, int64_t rows, int64_t C, const void* y, const void* residual,
                    const void* gain, const void* offset, void* stream) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    const Tiles tiles(1, rows, C);
    const bool large = is_large<Stored>(rows * C);
    const auto* from = static_cast<const Stored*>(y);
    const auto* around = static_cast<const Stored*>(residual);
    return parallel_for(tiles.count, tiles.grain(), [=](int64_t begin, int64_t end) FLAT {
      const auto gains = along_tile<Real>(tiles, static_cast<const Real*>(gain), 1);
      const auto offsets = along_tile<Real>(tiles, static_cast<const Real*>(offset), 0);
      for (int64_t tile = begin; tile < end; ++tile)
        in_fours<Real>(tiles.rows_of(tile) * C, [&](int64_t i, auto count) {
          const int64_t here = tiles.at(0, tile) + i;
          auto x = load_four(&gains[i], count) * load_four(from + here, count) +
                   load_four(&offsets[i], count);
          if (around) x = x + load_four(around + here, count);
          save_four(static_cast<Stored*>(stream) + here, x, count, large);
        });
    });
  });
}

EXPORT int norm_products(int32_t dtype, int64_t rows, int64_t C, const void* grad_x, const void* y,
                         void* grad_gain, void* grad_offset) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    const Tiles tiles(1, rows, C);
    const auto *g = static_cast<const Stored*>(grad_x), *from = static_cast<const Stored*>(y);
    return sum_over_rows<2, Real>(
        tiles, {static_cast<Real*>(grad_gain), static_cast<Real*>(grad_offset)},
        [=](int64_t begin, int64_t end, Real* sums) FLAT {
          for (int64_t tile = begin; tile < end; ++tile)
            in_fours<Real>(tiles.rows_of(tile) * C, [&](int64_t i, auto count) {
              const int64_t here = tiles.at(0, tile) + i;
              const auto x = load_four(g + here, count);
              add_to(sums + i, x * load_four(from + here, count), count);
              add_to(sums + tiles.size() + i, x, count);
            });
        });
  });
}

EXPORT int norm_backward(int32_t dtype, int64_t rows, int64_t C, const void* grad_x, const void* y,
                         const void* a, const void* b, const void* c, void* grad_y) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    const Tiles tiles(1, rows, C);
    const bool large = is_large<Stored>(rows * C);
    const auto *g = static_cast<const Stored*>(grad_x), *from = static_cast<const Stored*>(y);
    return parallel_for(tiles.count, tiles.grain(), [=](int64_t begin, int64_t end) FLAT {
      const auto as = along_tile<Real>(tiles, static_cast<const Real*>(a), 1);
      const auto bs = along_tile<Real>(tiles, static_cast<const Real*>(b), 0);
      const auto cs = along_tile<Real>(tiles, static_cast<const Real*>(c), 0);
      for (int64_t tile = begin; tile < end; ++tile)
        in_fours<Real>(tiles.rows_of(tile) * C, [&](int64_t i, auto count) {
          const int64_t here = tiles.at(0, tile) + i;
          const auto through = load_four(&bs[i], count) * load_four(from + here, count) +
                               load_four(&cs[i], count);
          const auto x = through + load_four(&as[i], count) * load_four(g + here, count);
          save_four(static_cast<Stored*>(grad_y) + here, x, count, large);
        });
    });
  });
}
