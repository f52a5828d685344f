"""Fine-tuning: records to conversations to batches, LoRA training, and merging the adapter into its base."""

import logging

# peft imports bitsandbytes where it is installed, which then asks for kernels that nothing here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
