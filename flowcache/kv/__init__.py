"""What the cache of finished chunks keeps (select/), and how precisely (store/)."""
