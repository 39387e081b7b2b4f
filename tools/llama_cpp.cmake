# Builds of llama.cpp only what runed runs, llama-server and llama-quantize. CMake includes this file where the project begins.

cmake_minimum_required(VERSION 3.19) # for DEFER

function(build_only_what_runs)
    set_property(DIRECTORY tools PROPERTY EXCLUDE_FROM_ALL TRUE)
    add_custom_target(what_runs ALL)
    add_dependencies(what_runs llama-server llama-quantize)
    # The server is linked to the code for images, which no embedding of a text reaches. It is a quarter of the files.
    target_compile_options(mtmd PRIVATE -O0)
endfunction()

cmake_language(DEFER CALL build_only_what_runs)
