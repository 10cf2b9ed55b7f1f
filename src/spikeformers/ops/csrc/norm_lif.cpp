// The ops of norm_lif: batch norm, residual sum and neuron on matrices [T, R, C].
//
// Some rows at a time, a tile, walk through all steps with their membranes in the first-level
// cache. Gain and offset are laid out as long as a tile, so that loops run over it without caring
// where a row ends.
//
// Sums over rows are formed in chunks of tiles, whose number depends on the shape alone, and the
// chunks' sums are added up in order: results are the same for any number of threads.
#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "bits.h"
#include "buffer.h"
#include "export.h"
#include "neuron.h"
#include "number.h"
#include "parallel.h"
#include "stream.h"
#include "surrogate.h"

namespace {

constexpr int64_t TILE = 128;                // numbers in a tile, about: short runs are fetched best
constexpr int64_t VECTOR = 16;               // numbers, at any level
constexpr int64_t CHUNK = 1 << 16;           // numbers in a chunk, about: they fit into a core's cache
constexpr int64_t WORTH_A_THREAD = 1 << 15;  // numbers

// A matrix [T, R, C], cut into tiles of `rows` rows.
struct Tiles {
  int64_t T, R, C, rows, count;

  Tiles(int64_t T, int64_t R, int64_t C) : T(T), R(R), C(C) {
    // Only the last tile may end within a vector.
    const int64_t together = VECTOR / std::gcd(C, VECTOR);
    rows = std::max<int64_t>(1, TILE / (together * C)) * together;
    count = (R + rows - 1) / rows;
  }

  int64_t size() const { return rows * C; }
  int64_t rows_of(int64_t tile) const { return std::min(rows, R - tile * rows); }
  int64_t at(int64_t t, int64_t tile) const { return (t * R + tile * rows) * C; }
  int64_t grain() const { return std::max<int64_t>(1, WORTH_A_THREAD / (T * size())); }
};

// Asks for memory that the next tile will read, while this one is computed.
template <class Stored>
void ask_for(const Stored* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(Stored)))
    __builtin_prefetch(from + i, 0, 2);
}

// A vector [C] once per row of a tile.
template <class Real>
Buffer<Real> along_tile(const Tiles& tiles, const Real* vector, Real otherwise) {
  Buffer<Real> repeated(tiles.size(), otherwise);
  if (vector)
    for (int64_t row = 0; row < tiles.rows; ++row)
      std::copy_n(vector, tiles.C, repeated.data() + row * tiles.C);
  return repeated;
}

template <class Real, class Stored>
void affine(const Stored* __restrict y, const Real* __restrict gain, const Real* __restrict offset,
            Real* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = gain[i] * widen(y[i]) + offset[i];
}

template <class Real, class Stored>
void widen_all(const Stored* __restrict from, Real* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

template <class Real, class Stored>
void narrow_all(const Real* __restrict from, Stored* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrow<Stored>(from[i]);
}

// Narrows on the way to memory; `between` is as long as a tile.
template <class Stored>
void store_narrow(Stored* to, const Wide<Stored>* from, Stored* between, int64_t count,
                  bool large) {
  if constexpr (std::is_same_v<Stored, Wide<Stored>>) {
    store(to, from, count, large);
  } else {
    narrow_all(from, between, count);
    store(to, between, count, large);
  }
}

template <class Real, class Stored>
void add(const Stored* __restrict residual, Real* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += widen(residual[i]);
}

template <class Real, class Stored>
void add_scaled(const Stored* __restrict from, const Real* __restrict factor, Real* __restrict x,
                int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += factor[i] * widen(from[i]);
}

// Sums of x - origin and of its squares.
template <class Real, class Stored>
void add_powers(const Stored* __restrict x, const Real* __restrict origin, Real* __restrict sum,
                Real* __restrict square, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Real d = widen(x[i]) - origin[i];
    sum[i] += d;
    square[i] += d * d;
  }
}

template <class Neuron, class Real>
void step(const Neuron neuron, const Real* __restrict x, Real* __restrict v,
          uint8_t* __restrict fired, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Real h = neuron.charge(v[i], x[i]);
    const bool fires = neuron.fires(h);
    fired[i] = fires;
    v[i] = neuron.reset(h, fires);
  }
}

// The step again, given what fired; x = gain y + offset.
template <class Neuron, class Real, class Stored>
void step_again(const Neuron neuron, const Stored* __restrict y, const Real* __restrict gain,
                const Real* __restrict offset, const uint8_t* __restrict fired,
                Real* __restrict v, Real* __restrict h, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    h[i] = neuron.charge(v[i], gain[i] * widen(y[i]) + offset[i]);
    v[i] = neuron.reset(h[i], fired[i] != 0);
  }
}

template <class Neuron, class Slope, class Real, class Stored>
void step_back(const Neuron neuron, const Slope slope, const Stored* __restrict grad_spikes,
               const Real* __restrict h, const uint8_t* __restrict fired,
               Real* __restrict grad_v, Real* __restrict grad_x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Real grad_h = neuron.grad_h(h[i], fired[i] != 0, slope(h[i] - neuron.threshold),
                                      widen(grad_spikes[i]), grad_v[i]);
    grad_v[i] = grad_h * neuron.decay;
    grad_x[i] = neuron.grad_x(grad_h);
  }
}

template <class Real, class Stored>
void add_products(const Real* __restrict grad_x, const Stored* __restrict y,
                  Real* __restrict sum_gy, Real* __restrict sum_g, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    sum_gy[i] += grad_x[i] * widen(y[i]);
    sum_g[i] += grad_x[i];
  }
}

// Sums over rows: body(begin, end, sums) adds the tiles of one chunk into the vectors `sums`, each
// as long as a tile; out[k] gets the k-th of them summed over all rows.
template <int SUMS, class Real, class Body>
int sum_over_rows(const Tiles& tiles, Real* const (&out)[SUMS], const Body& body) {
  const int64_t per_chunk = std::max<int64_t>(1, CHUNK / (tiles.T * tiles.size()));
  const int64_t chunks = (tiles.count + per_chunk - 1) / per_chunk, C = tiles.C;
  std::vector<double> partial(chunks * SUMS * C);
  double* const totals = partial.data();
  const int failed = parallel_for(chunks, 1, [=, &tiles, &body](int64_t begin, int64_t end) {
    Buffer<Real> sums(SUMS * tiles.size());
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      std::fill(sums.begin(), sums.end(), Real{0});
      body(chunk * per_chunk, std::min(tiles.count, (chunk + 1) * per_chunk), sums.data());
      for (int k = 0; k < SUMS; ++k)
        for (int64_t i = 0; i < tiles.size(); ++i)
          totals[(chunk * SUMS + k) * C + i % C] += sums[k * tiles.size() + i];
    }
  });
  for (int k = 0; k < SUMS; ++k)
    for (int64_t c = 0; c < C; ++c) {
      double total = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) total += totals[(chunk * SUMS + k) * C + c];
      out[k][c] = static_cast<Real>(total);
    }
  return failed;
}

template <class Stored>
int moments(int64_t rows, int64_t C, const Stored* y, Wide<Stored>* mean, Wide<Stored>* var) {
  using Real = Wide<Stored>;
  const Tiles tiles(1, rows, C);
  const int64_t per_chunk = std::max<int64_t>(1, CHUNK / tiles.size()), size = tiles.size();
  const int64_t chunks = (tiles.count + per_chunk - 1) / per_chunk;
  const auto rows_of = [=](int64_t chunk) {
    return std::min(per_chunk * tiles.rows, rows - chunk * per_chunk * tiles.rows);
  };
  // Values are counted from the first row of their chunk, so that no digits are lost to a large
  // mean; then each chunk has a mean of its own, and squares around it.
  std::vector<double> means(chunks * C), squares(chunks * C);
  double *const mean_of = means.data(), *const squares_of = squares.data();
  const int failed = parallel_for(chunks, 1, [=](int64_t begin, int64_t end) {
    Buffer<Real> sum(size), square(size), first_row(C);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * per_chunk, last = std::min(tiles.count, first + per_chunk);
      widen_all(y + tiles.at(0, first), first_row.data(), C);
      const Buffer<Real> origin = along_tile<Real>(tiles, first_row.data(), 0);
      std::fill(sum.begin(), sum.end(), Real{0});
      std::fill(square.begin(), square.end(), Real{0});
      for (int64_t tile = first; tile < last; ++tile)
        add_powers(y + tiles.at(0, tile), origin.data(), sum.data(), square.data(),
                   tiles.rows_of(tile) * C);
      double *const m = mean_of + chunk * C, *const s = squares_of + chunk * C;
      for (int64_t i = 0; i < size; ++i) {
        m[i % C] += sum[i];
        s[i % C] += square[i];
      }
      for (int64_t c = 0; c < C; ++c) {
        m[c] /= rows_of(chunk);
        s[c] -= m[c] * m[c] * rows_of(chunk);
        m[c] += first_row[c];
      }
    }
  });
  for (int64_t c = 0; c < C; ++c) {
    double common = 0, around = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      common += mean_of[chunk * C + c] * rows_of(chunk) / rows;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double apart = mean_of[chunk * C + c] - common;
      around += squares_of[chunk * C + c] + apart * apart * rows_of(chunk);
    }
    mean[c] = static_cast<Real>(common);
    var[c] = static_cast<Real>(std::max(around / rows, 0.0));
  }
  return failed;
}

template <class Stored, class Neuron>
int forward(const Neuron& neuron, const Tiles& tiles, const Stored* y, const Stored* residual,
            const Wide<Stored>* gain, const Wide<Stored>* offset, int64_t* bits, Stored* stream) {
  using Real = Wide<Stored>;
  const bool large = is_large<Stored>(tiles.T * tiles.R * tiles.C);
  const int64_t words = words_of(tiles.C), size = tiles.size();
  return parallel_for(tiles.count, tiles.grain(), [=](int64_t begin, int64_t end) {
    const auto gains = along_tile<Real>(tiles, gain, 1), offsets = along_tile<Real>(tiles, offset, 0);
    Buffer<Real> x(tiles.size()), v(tiles.size());
    Buffer<Stored> total(tiles.size());
    Buffer<uint8_t> fired(tiles.size() + BIT_SLACK);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t rows = tiles.rows_of(tile), count = rows * tiles.C;
      start<Real>(v.data(), nullptr, neuron.rest, count);
      for (int64_t t = 0; t < tiles.T; ++t) {
        const int64_t at = tiles.at(t, tile);
        if (tile + 1 < end) {
          ask_for(y + at + size, count);
          if (residual) ask_for(residual + at + size, count);
        }
        affine(y + at, gains.data(), offsets.data(), x.data(), count);
        if (residual) add(residual + at, x.data(), count);
        if (stream) {
          store_narrow(stream + at, x.data(), total.data(), count, large);
          if constexpr (!std::is_same_v<Stored, Real>) widen_all(total.data(), x.data(), count);
        }
        step(neuron, x.data(), v.data(), fired.data(), count);
        int64_t* const out = bits + (t * tiles.R + tile * tiles.rows) * words;
        for (int64_t row = 0; row < rows; ++row)
          pack_row(fired.data() + row * tiles.C, tiles.C, out + row * words);
      }
    }
  });
}

template <class Stored, class Neuron, class Slope>
int backward(const Neuron& neuron, const Slope& slope, const Tiles& tiles,
             const Stored* grad_spikes, const Stored* grad_stream, const int64_t* bits,
             const Stored* y, const Stored* stream, const Wide<Stored>* gain,
             const Wide<Stored>* offset, Stored* grad_x, Wide<Stored>* grad_gain,
             Wide<Stored>* grad_offset) {
  using Real = Wide<Stored>;
  const bool large = is_large<Stored>(tiles.T * tiles.R * tiles.C);
  const int64_t words = words_of(tiles.C), T = tiles.T, size = tiles.size();
  const auto walk = [=](int64_t begin, int64_t end, Real* sums) {
    const Stored* const from = stream ? stream : y;
    const auto gains = along_tile<Real>(tiles, stream ? nullptr : gain, 1);
    const auto offsets = along_tile<Real>(tiles, stream ? nullptr : offset, 0);
    Buffer<Real> x(size), v(size), h(T * size);
    Buffer<uint8_t> fired(T * size + BIT_SLACK);
    Buffer<Stored> grads(size);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t rows = tiles.rows_of(tile), count = rows * tiles.C;
      start<Real>(v.data(), nullptr, neuron.rest, count);
      for (int64_t t = 0; t < T; ++t) {
        const int64_t at = tiles.at(t, tile);
        const int64_t* const in = bits + (t * tiles.R + tile * tiles.rows) * words;
        for (int64_t row = 0; row < rows; ++row)
          unpack_row(in + row * words, tiles.C, &fired[t * size + row * tiles.C]);
        if (tile + 1 < end) {
          ask_for(y + at + size, count);
          ask_for(grad_spikes + at + size, count);
          if (stream) ask_for(stream + at + size, count);
          if (grad_stream) ask_for(grad_stream + at + size, count);
        }
        step_again(neuron, from + at, gains.data(), offsets.data(), &fired[t * size], v.data(),
                   &h[t * size], count);
      }
      std::fill_n(v.data(), count, Real{0});
      for (int64_t t = T - 1; t >= 0; --t) {
        const int64_t at = tiles.at(t, tile);
        step_back(neuron, slope, grad_spikes + at, &h[t * size], &fired[t * size], v.data(),
                  x.data(), count);
        if (grad_stream) add(grad_stream + at, x.data(), count);
        if (sums) add_products(x.data(), y + at, sums, sums + size, count);
        store_narrow(grad_x + at, x.data(), grads.data(), count, large);
      }
    }
  };
  if (grad_gain) return sum_over_rows<2, Real>(tiles, {grad_gain, grad_offset}, walk);
  return parallel_for(tiles.count, tiles.grain(),
                      [&](int64_t begin, int64_t end) { walk(begin, end, nullptr); });
}

}  // namespace

EXPORT int channel_moments(int32_t dtype, int64_t rows, int64_t C, const void* y, void* mean,
                           void* var) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return moments(rows, C, static_cast<const Stored*>(y), static_cast<Real*>(mean),
                   static_cast<Real*>(var));
  });
}

EXPORT int norm_add(int32_t dtype, int64_t rows, int64_t C, const void* y, const void* residual,
                    const void* gain, const void* offset, void* stream) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    const Tiles tiles(1, rows, C);
    const bool large = is_large<Stored>(rows * C);
    const auto *from = static_cast<const Stored*>(y), *around = static_cast<const Stored*>(residual);
    return parallel_for(tiles.count, tiles.grain(), [=](int64_t begin, int64_t end) {
      const auto gains = along_tile<Real>(tiles, static_cast<const Real*>(gain), 1);
      const auto offsets = along_tile<Real>(tiles, static_cast<const Real*>(offset), 0);
      Buffer<Real> x(tiles.size());
      Buffer<Stored> total(tiles.size());
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t at = tiles.at(0, tile), count = tiles.rows_of(tile) * C;
        affine(from + at, gains.data(), offsets.data(), x.data(), count);
        if (around) add(around + at, x.data(), count);
        store_narrow(static_cast<Stored*>(stream) + at, x.data(), total.data(), count, large);
      }
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
        [=](int64_t begin, int64_t end, Real* sums) {
          Buffer<Real> wide(tiles.size());
          for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t at = tiles.at(0, tile), count = tiles.rows_of(tile) * C;
            widen_all(g + at, wide.data(), count);
            add_products(wide.data(), from + at, sums, sums + tiles.size(), count);
          }
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
    return parallel_for(tiles.count, tiles.grain(), [=](int64_t begin, int64_t end) {
      const auto as = along_tile<Real>(tiles, static_cast<const Real*>(a), 1);
      const auto bs = along_tile<Real>(tiles, static_cast<const Real*>(b), 0);
      const auto cs = along_tile<Real>(tiles, static_cast<const Real*>(c), 0);
      Buffer<Real> x(tiles.size());
      Buffer<Stored> grads(tiles.size());
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t at = tiles.at(0, tile), count = tiles.rows_of(tile) * C;
        affine(from + at, bs.data(), cs.data(), x.data(), count);
        add_scaled(g + at, as.data(), x.data(), count);
        store_narrow(static_cast<Stored*>(grad_y) + at, x.data(), grads.data(), count, large);
      }
    });
  });
}

EXPORT int norm_lif_forward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t R,
                            int64_t C, const void* y, const void* residual, const void* gain,
                            const void* offset, int64_t* bits, void* stream) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return with_neuron<Real>(*options, [&](const auto& neuron) {
      return forward(neuron, Tiles(T, R, C), static_cast<const Stored*>(y),
                     static_cast<const Stored*>(residual), static_cast<const Real*>(gain),
                     static_cast<const Real*>(offset), bits, static_cast<Stored*>(stream));
    });
  });
}

EXPORT int norm_lif_backward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t R,
                             int64_t C, const void* grad_spikes, const void* grad_stream,
                             const int64_t* bits, const void* y, const void* stream,
                             const void* gain, const void* offset, void* grad_x, void* grad_gain,
                             void* grad_offset) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return with_neuron<Real>(*options, [&](const auto& neuron) {
      return with_surrogate<Real>(options->surrogate, options->alpha, [&](const auto& slope) {
      return backward(neuron, slope, Tiles(T, R, C),
                      static_cast<const Stored*>(grad_spikes),
                      static_cast<const Stored*>(grad_stream), bits, static_cast<const Stored*>(y),
                      static_cast<const Stored*>(stream), static_cast<const Real*>(gain),
                      static_cast<const Real*>(offset), static_cast<Stored*>(grad_x),
                      static_cast<Real*>(grad_gain), static_cast<Real*>(grad_offset));
    });
    });
  });
}
