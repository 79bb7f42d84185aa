import torch

from hatllm.masks.schedule import Schedule
from hatllm.model.backbone import tiny_llama
from hatllm.model.masked_lm import FEW_TOKENS, MaskedLM


def test_logits_of_chosen_tokens_equal_those_picked_from_the_whole_vocabulary() -> None:
    lm = MaskedLM(tiny_llama(), Schedule(("full",) * 4, "items", False, True), "sdpa")
    head = lm.backbone[0].lm_head
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 258))  # some families have one
    lm.final_softcap = 5.0
    torch.manual_seed(0)
    hidden_TD = torch.randn(4, 32, requires_grad=True)
    counts = torch.tensor([FEW_TOKENS + 1, 3, 200, 0])  # both ways, and a row nobody asks about
    row_C = torch.arange(4).repeat_interleave(counts)
    token_C = torch.cat([torch.randperm(258)[:count] for count in counts])
    chosen_C = lm.logits_at(hidden_TD, row_C, token_C)
    whole_C = lm.logits(hidden_TD)[row_C, token_C]
    torch.testing.assert_close(chosen_C, whole_C)
    weight_C = torch.randn(len(row_C))
    gradients = [
        torch.autograd.grad((logit_C * weight_C).sum(), hidden_TD, retain_graph=True)[0]
        for logit_C in (chosen_C, whole_C)
    ]
    torch.testing.assert_close(*gradients)
