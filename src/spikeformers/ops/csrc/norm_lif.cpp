// The op norm_lif: affine map of a norm, residual sum and neuron on matrices [T, R, C].
//
// Some neurons walk through all steps in registers; the backward pass walks forward first, to
// compute the membranes again.
#include <algorithm>
#include <initializer_list>

#include "bits.h"
#include "export.h"
#include "four.h"
#include "neuron.h"
#include "parallel.h"
#include "surrogate.h"
#include "tiles.h"

namespace {

// Asks memory for what the next four will read of these tensors, while one is computed.
template <class Stored>
inline void ask_for_next(int64_t here, std::initializer_list<const Stored*> tensors) {
  for (const Stored* tensor : tensors)
    for (int64_t vector = 4; tensor && vector < 8; ++vector)
      __builtin_prefetch(tensor + here + vector * LANES<Wide<Stored>>, 0, 2);
}

// As they are when they come back from memory.
template <class Stored>
inline Four<Wide<Stored>> as_stored(const Four<Wide<Stored>>& x) {
  constexpr int64_t all = FOUR<Wide<Stored>>;
  Stored stored[all];
  save_four(stored, x, all, false);
  return load_four(stored, all);
}

// The spikes of a tile, [T, rows, C], as bits without gaps between rows.
struct Spikes {
  const Tiles& tiles;
  const int64_t words;  // of a step, one more than it fills
  const Aligned<uint64_t> joined;

  explicit Spikes(const Tiles& tiles)
      : tiles(tiles),
        words(words_of(tiles.size()) + 1),
        joined(make_aligned<uint64_t>(tiles.T * words)) {}

  void read(const int64_t* bits, int64_t tile) const {
    for (int64_t t = 0; t < tiles.T; ++t)
      join_rows(bits + first_word(t, tile), tiles.rows_of(tile), tiles.C, &joined[t * words]);
  }
  void write(int64_t* bits, int64_t tile) const {
    for (int64_t t = 0; t < tiles.T; ++t)
      split_rows(&joined[t * words], tiles.rows_of(tile), tiles.C, bits + first_word(t, tile));
  }
  void clear() const { std::fill_n(joined.get(), tiles.T * words, 0); }

  template <class Real>
  Mask<Real> fired(int64_t t, int64_t i) const {
    return mask_of<Real>(joined[t * words + i / WORD] >> (i % WORD));
  }
  template <class Real>
  void fire(int64_t t, int64_t i, const Mask<Real>& fires) const {
    joined[t * words + i / WORD] |= bits_of(fires) << (i % WORD);
  }

 private:
  int64_t first_word(int64_t t, int64_t tile) const {
    return (t * tiles.R + tile * tiles.rows) * words_of(tiles.C);
  }
};

template <class Stored>
int forward(const Neuron<Wide<Stored>>& neuron, const Tiles& tiles, const Stored* y,
            const Stored* residual, const Wide<Stored>* gain, const Wide<Stored>* offset,
            int64_t* bits, Stored* stream) {
  using Real = Wide<Stored>;
  const bool large = is_large<Stored>(tiles.T * tiles.R * tiles.C);
  return parallel_for(tiles.count, tiles.grain(), [=](int64_t begin, int64_t end) FLAT {
    const auto gains = along_tile<Real>(tiles, gain, 1);
    const auto offsets = along_tile<Real>(tiles, offset, 0);
    const Spikes spikes(tiles);
    for (int64_t tile = begin; tile < end; ++tile) {
      spikes.clear();
      in_fours<Real>(tiles.rows_of(tile) * tiles.C, [&](int64_t i, auto count) {
        Four<Real> v(neuron.rest);
        for (int64_t t = 0; t < tiles.T; ++t) {
          const int64_t here = tiles.at(t, tile) + i;
          ask_for_next(here, {y, residual});
          auto x = load_four(&gains[i], count) * load_four(y + here, count) +
                   load_four(&offsets[i], count);
          if (residual) x = x + load_four(residual + here, count);
          if (stream) {
            save_four(stream + here, x, count, large);
            x = as_stored<Stored>(x);
          }
          const auto h = neuron.charge(v, x);
          const auto fires = neuron.fires(h);
          spikes.fire(t, i, fires);
          v = neuron.reset(h, fires);
        }
      });
      spikes.write(bits, tile);
    }
  });
}

// The gradient of x is written over that of the spikes.
template <class Stored, class Slope>
int backward(const Neuron<Wide<Stored>>& neuron, const Slope& slope, const Tiles& tiles,
             Stored* grad, const Stored* grad_stream, const int64_t* bits, const Stored* y,
             const Stored* stream, const Wide<Stored>* gain, const Wide<Stored>* offset,
             Wide<Stored>* grad_gain, Wide<Stored>* grad_offset) {
  using Real = Wide<Stored>;
  const auto walk = [=](int64_t begin, int64_t end, Real* sums) FLAT {
    const Stored* const from = stream ? stream : y;
    const auto gains = along_tile<Real>(tiles, stream ? nullptr : gain, 1);
    const auto offsets = along_tile<Real>(tiles, stream ? nullptr : offset, 0);
    const auto h = make_aligned<Four<Real>>(tiles.T);
    const Spikes spikes(tiles);
    for (int64_t tile = begin; tile < end; ++tile) {
      spikes.read(bits, tile);
      in_fours<Real>(tiles.rows_of(tile) * tiles.C, [&](int64_t i, auto count) {
        Four<Real> v(neuron.rest), grad_v(0);
        for (int64_t t = 0; t < tiles.T; ++t) {
          const int64_t here = tiles.at(t, tile) + i;
          ask_for_next(here, {y, stream, grad, grad_stream});
          h[t] = neuron.charge(v, load_four(&gains[i], count) * load_four(from + here, count) +
                                      load_four(&offsets[i], count));
          v = neuron.reset(h[t], spikes.fired<Real>(t, i));
        }
        for (int64_t t = tiles.T - 1; t >= 0; --t) {
          const int64_t here = tiles.at(t, tile) + i;
          const auto grad_h =
              neuron.grad_h(h[t], spikes.fired<Real>(t, i), slope(h[t] - neuron.threshold),
                            load_four(grad + here, count), grad_v);
          grad_v = grad_h * neuron.decay;
          auto x = neuron.grad_x(grad_h);
          if (grad_stream) x = x + load_four(grad_stream + here, count);
          if (sums) {
            add_to(sums + i, x * load_four(y + here, count), count);
            add_to(sums + tiles.size() + i, x, count);
          }
          save_four(grad + here, x, count, false);
        }
      });
    }
  };
  if (grad_gain) return sum_over_rows<2, Real>(tiles, {grad_gain, grad_offset}, walk);
  return parallel_for(tiles.count, tiles.grain(),
                      [&](int64_t begin, int64_t end) { walk(begin, end, nullptr); });
}

}  // namespace

EXPORT int norm_lif_forward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t R,
                            int64_t C, const void* y, const void* residual, const void* gain,
                            const void* offset, int64_t* bits, void* stream) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return forward(Neuron<Real>(*options), Tiles(T, R, C), static_cast<const Stored*>(y),
                   static_cast<const Stored*>(residual), static_cast<const Real*>(gain),
                   static_cast<const Real*>(offset), bits, static_cast<Stored*>(stream));
  });
}

EXPORT int norm_lif_backward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t R,
                             int64_t C, void* grad, const void* grad_stream, const int64_t* bits,
                             const void* y, const void* stream, const void* gain,
                             const void* offset, void* grad_gain, void* grad_offset) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return with_surrogate<Real>(options->surrogate, options->alpha, [&](const auto& slope) {
      return backward(Neuron<Real>(*options), slope, Tiles(T, R, C),
                      static_cast<Stored*>(grad), static_cast<const Stored*>(grad_stream), bits,
                      static_cast<const Stored*>(y), static_cast<const Stored*>(stream),
                      static_cast<const Real*>(gain), static_cast<const Real*>(offset),
                      static_cast<Real*>(grad_gain), static_cast<Real*>(grad_offset));
    });
  });
}
