"""Search over your own documents: BM25, dense vectors, both fused; TREC and BEIR files in and out."""
