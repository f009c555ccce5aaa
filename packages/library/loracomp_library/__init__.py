"""The shipped library, data alone: loracomp.registry.library_files says what each file holds."""
