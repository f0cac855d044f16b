"""Serving: resident generations, batching, and the HTTP service in front of them."""
