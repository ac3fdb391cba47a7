"""The worker: claims tasks, talks to analyzer services about many of them at once, and stores what comes of them."""
