"""Model status: probes of models through OpenAI-compatible APIs, and what they say together with real traffic."""
