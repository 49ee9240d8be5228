"""The coordinator of real sites: Flower's Fleet API over HTTPS or gRPC, and nothing else there."""
