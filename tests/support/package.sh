# For the scripts that run tests of the root package in builds of their own: source it, from the root.
#
# test_profile: the profile of all packages of these scripts, and of the workspace, so that what they have in common is
# built once.
test_profile() {
    printf '\n'
    sed -n '/^\[profile\.test/,/^$/{/^#/d; p}' Cargo.toml
}

# small_package DIR TEST...: makes DIR a package with these tests, which are those of tests/ or, as NAME=PATH, others.
# It has what they need and no more: all that the tests of the root together depend on would take long to build.
small_package() {
    local dir=$1 test
    shift
    mkdir -p "$dir/tests"
    cp Cargo.lock "$dir/"
    # Found from the package's folder.
    ln -sfn "$PWD/tests/golden" "$dir/tests/golden"
    {
        cat << TOML
[package]
name = "small"
version = "0.0.0"
edition = "2024"

[workspace]

[dev-dependencies]
# With a text to train on.
cllm = { path = "$PWD/runner", default-features = false, features = ["text"] }
cllm-core.path = "$PWD/core"
cllm-kernels.path = "$PWD/kernels"
safetensors = "0.8.0"
serde = { version = "1", features = ["derive"] }
serde_json = "1"
TOML
        test_profile
        for test in "$@"; do
            case $test in
                *=*) ;;
                *) test=$test=$PWD/tests/$test.rs ;;
            esac
            printf '\n[[test]]\nname = "%s"\npath = "%s"\n' "${test%%=*}" "${test#*=}"
        done
    } > "$dir/Cargo.toml"
}
