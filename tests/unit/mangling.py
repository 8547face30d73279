"""Ways to spoil bytes."""

from hypothesis import strategies as st

from unit.recorded import MESSAGES

# The long ones only make mangling slower, and hits on what matters rarer.
SHORT = sorted((m for m in MESSAGES if len(m) < 200), key=len)


@st.composite
def mangled(draw, originals=SHORT) -> bytes:
    """Some bytes of the originals, with a few of them flipped, inserted, removed or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 4)):
            case 0 if data:
                data[position] ^= draw(st.integers(1, 255))
            case 1:
                data[position:position] = draw(st.binary(min_size=1, max_size=6))
            case 2:
                del data[position : position + draw(st.integers(1, 6))]
            case 3:
                del data[position:]
            case _:
                data[position : position + 4] = draw(st.integers(0, 2**32 - 1)).to_bytes(4, "big")
    return bytes(data)
