"""The offline encoder: weights by name, parity with transformers' T5, the same numbers everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from cosmos_predict.errors import ConfigError
from cosmos_predict.text_encoders.filled_weights import filled_weight
from cosmos_predict.text_encoders.tiny import TinyTextEncoder, byte_ids, position_buckets
from tests.goldens.fill import fill_array

PROMPTS = ["A video of sks teal robot.", "", "Ein Fluß, 川, und ein Boot " * 30, "A red car drives along the coast."]


@pytest.fixture(scope="module")
def encoder() -> TinyTextEncoder:
    return TinyTextEncoder()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.q.weight", (3, 5)),
        ("norm.weight", (7,)),
        ("a.gamma", (2,)),
        ("b.bias", (4,)),
        ("scale", ()),
        ("w", (2, 1, 3)),
    ],
)
def test_filled_weight_is_the_rule_of_the_golden_cases(name: str, shape: tuple[int, ...]) -> None:
    ours = filled_weight(name, shape, seed=3)
    assert ours.dtype == np.float32 and ours.shape == shape
    np.testing.assert_array_equal(ours, fill_array(name, shape, seed=3))


def test_output_is_padded_with_zeros_and_masked(encoder: TinyTextEncoder) -> None:
    embeddings, mask = encoder.encode(PROMPTS)
    assert embeddings.shape == (4, 512, 1024) and embeddings.dtype == torch.float32
    assert mask.shape == (4, 512) and mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [27, 1, 512, 34]  # bytes and the end of sequence
    assert torch.equal(embeddings.abs().sum(dim=-1) > 0, mask)


def test_numbers_are_pinned(encoder: TinyTextEncoder) -> None:
    """A base trained with this encoder stays valid only while these numbers do."""
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in encoder.weights.values())).hexdigest()
    assert digest[:16] == "7a80c99d5e275111"
    embeddings, _ = encoder.encode(["A robot arm pours coffee into a white cup."])
    rows = embeddings[0, [0, 9, 42]]
    expected = torch.tensor(
        [
            [1.3151, 0.9765, 0.1582, 2.1002, 1.0074],
            [1.5966, 0.8989, 0.3927, 0.1255, 1.0049],
            [0.0247, -0.0746, -0.9313, 1.1558, 1.0058],
        ]
    )
    torch.testing.assert_close(
        torch.cat([rows[:, :4], rows.std(dim=1, keepdim=True)], dim=1), expected, rtol=0, atol=5e-4
    )


def test_equals_the_t5_of_transformers(encoder: TinyTextEncoder) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=384,
        d_model=1024,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="relu",
        dropout_rate=0,
    )
    peer = transformers.T5EncoderModel(config).eval()
    peer.load_state_dict(encoder.weights | {"encoder.embed_tokens.weight": encoder.weights["shared.weight"]})
    tokens = transformers.ByT5Tokenizer()(
        PROMPTS, truncation=True, padding="max_length", max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = peer(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    embeddings, mask = encoder.encode(PROMPTS)
    assert torch.equal(mask, tokens.attention_mask.bool())
    torch.testing.assert_close(embeddings, hidden * tokens.attention_mask[..., None], rtol=0, atol=1e-4)


def test_a_prompt_never_depends_on_its_neighbours(encoder: TinyTextEncoder) -> None:
    alone, _ = encoder.encode([PROMPTS[3]])
    for neighbour in PROMPTS[:3]:
        together, _ = encoder.encode([neighbour, PROMPTS[3]])
        assert torch.equal(together[1], alone[0])


def test_different_prompts_get_different_embeddings(encoder: TinyTextEncoder) -> None:
    embeddings, _ = encoder.encode(["turn left", "turn right", "turn left."])
    assert (embeddings[0] - embeddings[1]).abs().max() > 0.1
    assert (embeddings[0] - embeddings[2]).abs().max() > 0.1


def test_max_length_cuts_the_text_and_keeps_the_end(encoder: TinyTextEncoder) -> None:
    assert byte_ids("abcdef", 4) == [100, 101, 102, 1]
    embeddings, mask = encoder.encode(["abcdef"], max_length=4)
    assert embeddings.shape == (1, 4, 1024) and mask.all()
    assert torch.equal(embeddings, encoder.encode(["abc"], max_length=4)[0])


def test_no_prompts_give_no_rows(encoder: TinyTextEncoder) -> None:
    embeddings, mask = encoder.encode([])
    assert embeddings.shape == (0, 512, 1024) and mask.shape == (0, 512)


def test_another_seed_is_another_encoder(encoder: TinyTextEncoder) -> None:
    assert not torch.equal(TinyTextEncoder(seed=1).encode(["a"])[0], encoder.encode(["a"])[0])


def test_position_buckets_follow_the_formula() -> None:
    buckets = position_buckets(200)
    assert buckets.min() == 0 and buckets.max() == 31
    for distance, bucket in [
        (0, 0),
        (7, 7),
        (8, 8),
        (11, 8),
        (12, 9),
        (15, 9),
        (16, 10),
        (63, 13),
        (64, 14),
        (199, 15),
    ]:
        assert buckets[199, 199 - distance] == bucket
        assert buckets[0, distance] == (bucket + 16 if distance else 0)


def test_bad_arguments_are_named(encoder: TinyTextEncoder) -> None:
    with pytest.raises(ConfigError, match="max_length is 0"):
        encoder.encode(["a"], max_length=0)
    with pytest.raises(TypeError, match="list of strings, got 'a prompt'"):
        encoder.encode("a prompt")  # type: ignore[arg-type]
