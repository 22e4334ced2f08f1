"""The families of Hugging Face transformers; imported when the first model of it comes."""

from dynamicvit.adapters import register_adapter
from dynamicvit.adapters.hf_dinov2 import HFDinov2Adapter
from dynamicvit.adapters.hf_siglip import HFSiglipAdapter
from dynamicvit.adapters.hf_vit import HFViTAdapter

for _adapter in (HFViTAdapter(), HFDinov2Adapter(), HFSiglipAdapter()):
    register_adapter(_adapter)
