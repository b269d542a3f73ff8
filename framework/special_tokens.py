"""The four ids that every tokenizer keeps free, so that batches, decoders and losses agree without asking."""

PAD = 0  # fills a batch; never a target
BOS = 1  # before the first word
EOS = 2  # after the last word
UNK = 3  # a word that the vocabulary does not hold
SIGNS = ("<pad>", "<bos>", "<eos>", "<unk>")  # by id, as vocabularies spell them; no text segments into these
