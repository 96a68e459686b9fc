//! Generates the gRPC types from `proto/agent.proto`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .bytes(".cowslip.agent.v1.Output.data")
        .bytes(".cowslip.agent.v1.StdinChunk.data")
        .bytes(".cowslip.agent.v1.FileChunk.data")
        .bytes(".cowslip.agent.v1.WriteFileChunk.data")
        .bytes(".cowslip.agent.v1.WriteTarChunk.data")
        .bytes(".cowslip.agent.v1.ForwardChunk.data")
        .build_transport(false)
        .compile_protos(&["proto/agent.proto"], &["proto"])
}
