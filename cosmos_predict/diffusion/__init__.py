"""The mathematics of diffusion on plain tensors: parameterizations, noise levels, schedules, samplers, guidance, loss.

Knows no network, tokenizer or data set, and imports nothing of the package but `errors` and `randomness`. `models` and
what stands above it may import it. Read it in the order `parameterization`, `noise`, `loss` (training), then
`schedules`, `guidance`, `samplers` (generation).

One state convention everywhere: the variance-exploding one, x = x0 + sigma * noise. Samplers, guidance and losses see
only `denoise(x, sigma) -> x0`; what the network is fed and what it puts out is the parameterization's business.
"""
