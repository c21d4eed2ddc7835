"""Operations tuned for a platform: the plain definition, and beside it what is faster there, to the same result.

`jax.lax.platform_dependent` chooses when a program is lowered, so each lowered program holds one of them, and
`jax.export` takes them all. Only fused attention is chosen by an argument: JAX cannot trace it everywhere.
"""
