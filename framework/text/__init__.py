"""Words and vectors of reports: vocabulary, segmentation, LSA space, embeddings, sentence encoders."""
