# %% [markdown]
# # Pack a checkpoint
# A ResNet8 with BatchNorm, as a training script saved it, becomes one matrix, and comes back.

# %%
import torch

import prepkit

torch.manual_seed(0)
network = prepkit.architecture("resnet8@digits").build()
for _ in range(5):
    network(torch.rand(64, 1, 8, 8))  # BatchNorm learns its statistics
torch.save({"state_dict": network.state_dict(), "epoch": 5}, "model.pt")

# %%
packed = prepkit.pack_checkpoint("model.pt", width=128)
print(packed.prep)
fusion = packed.fusion
print(f"{len(fusion.folded)} BatchNorms folded; outputs equal within {fusion.error_before_cast:.1e} in float64")

# %% [markdown]
# The file holds the layout and a checksum, and gives back every tensor bit for bit.

# %%
prepkit.save_prep(packed.prep, "model.prep.safetensors", overwrite=True)
tensors = prepkit.load_prep("model.prep.safetensors").tensors()
folded = prepkit.architecture("resnet8@digits").build_folded().eval()
folded.load_state_dict(tensors)
images = torch.rand(8, 1, 8, 8)
assert torch.allclose(folded(images), network.eval()(images), atol=1e-5)

# %%
from prepkit.figures import prep_figure, save_figure

figure = prep_figure(packed.prep.values, packed.prep.layout, "a ResNet8 as a PRep")
save_figure(figure, "pack_checkpoint.png", overwrite=True)
