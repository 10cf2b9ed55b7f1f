// The op `lif`: neurons over time, whose memory is read once and written once.
//
// Some neurons walk through all steps in registers; the backward pass walks forward first, to
// compute the membranes again.
#include "export.h"
#include "four.h"
#include "neuron.h"
#include "parallel.h"
#include "surrogate.h"

namespace {

constexpr int64_t BLOCK = 128;  // neurons at a time

template <class Stored>
int forward(const Neuron<Wide<Stored>>& neuron, int64_t T, int64_t neurons, const Stored* x,
            const Wide<Stored>* v0, Stored* spikes, Wide<Stored>* v_end) {
  using Real = Wide<Stored>;
  const bool large = is_large<Stored>(T * neurons);
  const int64_t blocks = (neurons + BLOCK - 1) / BLOCK;
  return parallel_for(blocks, grain(T * BLOCK), [=](int64_t begin, int64_t end) FLAT {
    const int64_t first = begin * BLOCK, last = std::min(neurons, end * BLOCK);
    in_fours<Real>(last - first, [&](int64_t i, auto count) {
      auto v = v0 ? load_four(v0 + first + i, count) : neuron.rest;
      for (int64_t t = 0; t < T; ++t) {
        const int64_t here = t * neurons + first + i;
        const auto h = neuron.charge(v, load_four(x + here, count));
        const auto fires = neuron.fires(h);
        save_four(spikes + here, choose(fires, 1, 0), count, large);
        v = neuron.reset(h, fires);
      }
      save_four(v_end + first + i, v, count, false);
    });
  });
}

template <class Stored, class Slope>
int backward(const Neuron<Wide<Stored>>& neuron, const Slope& slope, int64_t T, int64_t neurons,
             const Stored* grad_spikes, const Wide<Stored>* grad_v_end, const Stored* x,
             const Wide<Stored>* v0, Stored* grad_x, Wide<Stored>* grad_v0) {
  using Real = Wide<Stored>;
  const bool large = is_large<Stored>(T * neurons);
  const int64_t blocks = (neurons + BLOCK - 1) / BLOCK;
  return parallel_for(blocks, grain(T * BLOCK), [=](int64_t begin, int64_t end) FLAT {
    const int64_t first = begin * BLOCK, last = std::min(neurons, end * BLOCK);
    const auto h = make_aligned<Four<Real>>(T);
    in_fours<Real>(last - first, [&](int64_t i, auto count) {
      auto v = v0 ? load_four(v0 + first + i, count) : neuron.rest;
      for (int64_t t = 0; t < T; ++t) {
        h[t] = neuron.charge(v, load_four(x + t * neurons + first + i, count));
        v = neuron.reset(h[t], neuron.fires(h[t]));
      }
      auto grad_v = grad_v_end ? load_four(grad_v_end + first + i, count) : Real{0};
      for (int64_t t = T - 1; t >= 0; --t) {
        const int64_t here = t * neurons + first + i;
        const auto grad_h =
            neuron.grad_h(h[t], neuron.fires(h[t]), slope(h[t] - neuron.threshold),
                          load_four(grad_spikes + here, count), grad_v);
        grad_v = grad_h * neuron.decay;
        save_four(grad_x + here, neuron.grad_x(grad_h), count, large);
      }
      save_four(grad_v0 + first + i, grad_v, count, false);
    });
  });
}

}  // namespace

EXPORT int lif_forward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t neurons,
                       const void* x, const void* v0, void* spikes, void* v_end) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return forward(Neuron<Real>(*options), T, neurons, static_cast<const Stored*>(x),
                   static_cast<const Real*>(v0), static_cast<Stored*>(spikes),
                   static_cast<Real*>(v_end));
  });
}

EXPORT int lif_backward(int32_t dtype, const NeuronOptions* options, int64_t T, int64_t neurons,
                        const void* grad_spikes, const void* grad_v, const void* x, const void* v0,
                        void* grad_x, void* grad_v0) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return with_surrogate<Real>(options->surrogate, options->alpha, [&](const auto& slope) {
      return backward(Neuron<Real>(*options), slope, T, neurons,
                      static_cast<const Stored*>(grad_spikes), static_cast<const Real*>(grad_v),
                      static_cast<const Stored*>(x), static_cast<const Real*>(v0),
                      static_cast<Stored*>(grad_x), static_cast<Real*>(grad_v0));
    });
  });
}
