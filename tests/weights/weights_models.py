"""A model of one layer: shapes of its tensors, and its config."""

LLAMA = {"model_type": "llama", "hidden_size": 4, "num_attention_heads": 2}
BLOCK = {
    "embed_tokens.weight": (10, 4),
    "layers.0.self_attn.q_proj.weight": (4, 4),
    "layers.0.mlp.down_proj.weight": (4, 6),
    "layers.0.input_layernorm.weight": (4,),
    "norm.weight": (4,),
}
