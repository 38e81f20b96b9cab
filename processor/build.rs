//! A new migration is compiled in also when no source file changed.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
