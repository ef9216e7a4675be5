"""A folder as Cosmos-Reason1 is published: a Qwen2.5-VL with its vision tower, in shards, and a tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path

import torch

LAYERS, HIDDEN = 2, 32
WIDTH = LAYERS * HIDDEN
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{{ part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "You are a helpful assistant who will provide prompts to an image generator.",
    "a robot arm lifts a red block",
]


def make_folder(path: Path) -> Path:
    """Write a random one (the same at every call) and return its folder."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=TEMPLATE
    ).save_pretrained(path)
    text = {"vocab_size": 320, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": HIDDEN}
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )
    for name, parameter in model.named_parameters():  # norms and biases that do something
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3) if parameter.ndim == 1 else None
    model.save_pretrained(path, max_shard_size="60KB")
    return path
