"""What the tests ask of AdapterHub's own library: logits of a release, and an adapter made by it.

    peer.py logits BASE FOLDER [--setup]  < ids.json     loads a release and prints its logits
    peer.py make BASE FOLDER METHOD       < ids.json     makes an adapter with a head, saves it, prints its logits

ids.json is a list of lists of token ids; each is run alone, so no padding is involved. Prints a list of lists.
"""
import json
import logging
import os
import sys
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from adapters import AutoAdapterModel


def logits(model, rows):
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0].tolist() for row in rows]


def main():
    verb, base, folder, *more = sys.argv[1:]
    rows = json.load(sys.stdin)
    torch.manual_seed(5)
    model = AutoAdapterModel.from_pretrained(base)
    if verb == "make":
        model.add_adapter("made", config=more[0])
        model.add_classification_head("made", num_labels=3)
        generator = torch.Generator().manual_seed(7)
        for name, parameter in model.named_parameters():
            if "made" in name:
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
        model.set_active_adapters("made")
        os.makedirs(folder)
        model.save_adapter(folder, "made")
    elif "--setup" in more:
        model.load_adapter_setup(folder, set_active=True)
    else:
        model.load_adapter(folder, set_active=True)
    json.dump(logits(model, rows), sys.stdout)


main()
