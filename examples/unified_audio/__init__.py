"""One model for speech and sound: corpora → tokens → a language model over tokens → flow matching on mel → audio.

The system of the AG-REPA paper (arXiv 2603.01006, §A), built on the bundled DiT and on `fog_a`'s probes and
regularizer. With the examples folder on the path:

    clips, corpora                                what there is to hear: `Clip`, `Corpus`, and three sources of them
    cache, audio_frames, items, batches           features and tokens on disk; balanced, masked batches by number
    code_book, ast_tokenizer, s3, tokens, fusion  what it is cut into: S3 and AST codes; configurations A and B
    vocabulary, prompts, style, language_model, generation      stage 1: text → codes

    corpus = from_manifest("../shared/audio")                            # Clip(id, domain, path, text, …)
    reader = Reader(Cache("cache"), {"speech": KMeansCodes.fit(…), "sound": ASTCodes(tokenizer, frames)})
    MelBatches(reader, corpus.of("train"), 16, 256)(step)                # → MelBatch for `FlowMatching`
    FrameBatches(reader, corpus.of("train", "sound"), 64, frames)(step)  # → (F, mask) for `ASTTokenizer`
    LanguageBatches(reader, corpus.of("train"), 8, stage, frames)(step)  # → LanguageBatch for `LanguageStage`
    stage.generate([Prompt.speech("nine birds")])                        # → [(S3 codes,)], or two streams (s, b)
"""
