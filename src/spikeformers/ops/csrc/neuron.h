// The leaky integrate-and-fire neuron of ops/lif/reference.py, one neuron at one step.
//
// Nothing here branches. A loop over neurons is vectorised by the compiler if it stands in a
// function of its own, with the neuron by value and `__restrict` pointers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "number.h"

// As Python hands it over (ops/lif/native.py).
struct NeuronOptions {
  double decay, v_threshold, v_reset, alpha;
  int32_t is_soft, decay_input, strict, detach_reset, surrogate;
};

template <class Real, bool DECAY_INPUT>
struct Neuron {
  Real decay, gain, rest, threshold;
  Real fires_at;             // the lowest membrane that fires
  Real survives, after;      // a fired membrane h becomes survives * h + after;
  Real through_0, through_h;  // by firing it also depends on h: slope * (through_0 + through_h * h)

  explicit Neuron(const NeuronOptions& options)
      : decay(static_cast<Real>(options.decay)),
        gain(1 - decay),
        rest(static_cast<Real>(options.is_soft ? 0 : options.v_reset)),
        threshold(static_cast<Real>(options.v_threshold)),
        fires_at(options.strict ? std::nextafter(threshold, static_cast<Real>(INFINITY))
                                : threshold),
        survives(options.is_soft ? 1 : 0),
        after(options.is_soft ? -threshold : rest),
        through_0(options.detach_reset ? 0 : after),
        through_h(options.detach_reset ? 0 : survives - 1) {}

  Real charge(Real v, Real x) const {
    return DECAY_INPUT ? v + gain * (x - (v - rest)) : rest + decay * (v - rest) + x;
  }
  bool fires(Real h) const { return h >= fires_at; }
  Real reset(Real h, bool fired) const { return fired ? survives * h + after : h; }

  // Gradient of h from those of the spike and of the membrane after the reset.
  Real grad_h(Real h, bool fired, Real slope, Real grad_spike, Real grad_v) const {
    const Real dv_dh = (fired ? survives : 1) + slope * (through_0 + through_h * h);
    return grad_spike * slope + grad_v * dv_dh;
  }
  Real grad_x(Real grad_h) const { return DECAY_INPUT ? grad_h * gain : grad_h; }
};

// run(neuron) with the neuron that the options describe.
template <class Real, class Run>
inline int with_neuron(const NeuronOptions& options, const Run& run) {
  return options.decay_input ? run(Neuron<Real, true>(options)) : run(Neuron<Real, false>(options));
}

// Membranes before the first step, or their gradients behind the last one; null: all are `rest`.
template <class Real>
inline void start(Real* v, const Real* v0, Real rest, int64_t count) {
  if (v0) {
    std::copy_n(v0, count, v);
  } else {
    std::fill_n(v, count, rest);
  }
}

// One step of many neurons: membranes in and out, spikes out.
template <class Neuron, class Real, class Stored, class Spike>
inline void step(const Neuron neuron, const Stored* __restrict x, Real* __restrict v,
                 Spike* __restrict spikes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Real h = neuron.charge(v[i], widen(x[i]));
    const bool fires = neuron.fires(h);
    spikes[i] = spike_as<Spike>(fires);
    v[i] = neuron.reset(h, fires);
  }
}
