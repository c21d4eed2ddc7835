"""Where tokens are: positions added to them, or to attention's logits.

Shapes: `n` images, `h w` grid, `l` tokens (queries), `m` key tokens, `d` width, `a` heads, `e` size per head.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.command import UserError

PosEmbed = Literal["learned", "learned_2d", "sincos2d", "relative", "relative_bias", "none"]
IN_LOGITS = ("relative", "relative_bias")


def sincos1d(length: int, width: int) -> Float[Array, "l d"]:
    """Fixed positions, sine and cosine in turn (Vaswani et al. 2017, arXiv:1706.03762, s. 3.5)."""
    channel = jnp.arange(width)
    angle = jnp.arange(length)[:, None] / 10_000.0 ** (channel // 2 * 2 / width)[None]
    return jnp.where(channel[None] % 2 == 0, jnp.sin(angle), jnp.cos(angle))


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Float[Array, "h w d"]:
    """Fixed positions: sine and cosine of x and of y, a quarter of the width each (MoCo v3, arXiv:2104.02057)."""
    h, w = grid
    frequency = temperature ** -jnp.linspace(0.0, 1.0, width // 4)[None, None]
    x = jnp.broadcast_to(jnp.arange(w)[None, :, None] * frequency, (h, w, width // 4))
    y = jnp.broadcast_to(jnp.arange(h)[:, None, None] * frequency, (h, w, width // 4))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


class AddPositions(nn.Module):
    """Adds absolute positions to class tokens (if there are any) followed by the patches of a grid.

    `learned`: one table for the whole sequence. `sincos1d`: fixed, for the whole sequence. `learned_2d`: a table for x
    and one for y, of half the width each, concatenated. `sincos2d`: fixed. The last two leave the class tokens,
    themselves learned, without a position.
    """

    pos_embed: str
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        _, l, d = x.shape
        h, w = self.grid
        match self.pos_embed:
            case "learned":
                return x + self._learned(l, d).astype(x.dtype)
            case "sincos1d":
                return x + sincos1d(l, d)[None].astype(x.dtype)
            case "sincos2d":
                table = sincos2d(self.grid, d)
            case _:
                columns = self._axis("x_embedding", w, d // 2)
                rows = self._axis("y_embedding", h, d // 2)
                across = jnp.broadcast_to(columns[None, :, :], (h, w, d // 2))
                down = jnp.broadcast_to(rows[:, None, :], (h, w, d // 2))
                table = jnp.concatenate([across, down], axis=-1)
        table = jnp.pad(table.reshape(h * w, d), ((l - h * w, 0), (0, 0)))
        return x + table[None].astype(x.dtype)

    def _learned(self, l: int, d: int) -> Float[Array, "1 l d"]:
        """The table; one for another grid of the same aspect is interpolated."""
        h, w = self.grid
        if not self.has_variable("params", "pos_embedding"):
            return self.param("pos_embedding", nn.initializers.normal(stddev=0.02), (1, l, d))
        table: Float[Array, "1 m d"] = jnp.asarray(self.get_variable("params", "pos_embedding"))
        prefix, n = l - h * w, table.shape[1] - l + h * w
        if n == h * w:
            return table
        height, width = round((n * h / w) ** 0.5), round((n * w / h) ** 0.5)
        if height * width != n:
            raise UserError(f"{n} learned positions are no grid of the aspect {h}:{w}: the images have another one")
        places = table[0, prefix:].reshape(height, width, d)
        places = jax.image.resize(places, (h, w, d), "cubic", antialias=False).reshape(1, h * w, d)
        return jnp.concatenate([table[:, :prefix], places], axis=1)

    def _axis(self, name: str, length: int, d: int) -> Float[Array, "{length} {d}"]:
        """The table of one axis; one of another length is interpolated."""
        if not self.has_variable("params", name):
            return self.param(name, nn.initializers.normal(stddev=0.02), (length, d))
        table: Float[Array, "m d"] = jnp.asarray(self.get_variable("params", name))
        return table if len(table) == length else jax.image.resize(table, (length, d), "cubic", antialias=False)


def relative_logits(q: Float[Array, "n l a e"], table: Float[Array, "o e"]) -> Float[Array, "n a l m"]:
    """q_i . r_(i-j): a vector for each 1-D offset, 2 m - 1 of them (Shaw et al. 2018, arXiv:1803.02155, eq. 3)."""
    l, m = q.shape[1], (len(table) + 1) // 2
    offset = jnp.arange(l)[:, None] - jnp.arange(m)[None, :] + m - 1
    return jnp.einsum("nlae,lme->nalm", q, table[offset].astype(q.dtype)).astype(jnp.float32)


def relative_bias(table: Float[Array, "y x a"], m: int) -> Float[Array, "a m m"]:
    """A number for each head and 2-D offset in the grid (as Swin, Liu et al. 2021, arXiv:2103.14030, eq. 4).

    It is 0 where a token before the grid (class token, register) takes part.
    """
    h, w = ((size + 1) // 2 for size in table.shape[:2])
    y, x = jnp.divmod(jnp.arange(h * w), w)
    bias = table[y[:, None] - y[None, :] + h - 1, x[:, None] - x[None, :] + w - 1]  # [h*w h*w a]
    outside = m - h * w
    return jnp.pad(jnp.moveaxis(bias, -1, 0), ((0, 0), (outside, 0), (outside, 0)))
