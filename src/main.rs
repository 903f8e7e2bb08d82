fn main() -> std::process::ExitCode {
    egressd::cli::main()
}
