"""Fine-tuning: records to conversations to batches, LoRA training, and merging the adapter into its base."""
