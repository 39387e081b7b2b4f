// Modzip writes a module into a folder as a module proxy serves it, so that GOPROXY=file://FOLDER finds it there.
//
//	modzip FOLDER VERSION TIME DIRECTORY
//
// DIRECTORY holds the module, and TIME is the time of the version, as in RFC 3339.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 5 {
		log.Fatal("usage: modzip FOLDER VERSION TIME DIRECTORY")
	}
	if err := write(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		log.Fatal(err)
	}
}

func write(folder, version, at, directory string) error {
	mod, err := os.ReadFile(filepath.Join(directory, "go.mod"))
	if err != nil {
		return err
	}
	released, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return err
	}
	info, err := json.Marshal(map[string]any{"Version": version, "Time": released.UTC()})
	if err != nil {
		return err
	}
	path := modfile.ModulePath(mod)
	escaped, err := module.EscapePath(path)
	if err != nil {
		return err
	}
	target := filepath.Join(folder, escaped, "@v")
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		version + ".info": info,
		version + ".mod":  mod,
		"list":            fmt.Appendln(nil, version),
	} {
		if err := os.WriteFile(filepath.Join(target, name), content, 0o644); err != nil {
			return err
		}
	}
	archive, err := os.Create(filepath.Join(target, version+".zip"))
	if err != nil {
		return err
	}
	if err := zip.CreateFromDir(archive, module.Version{Path: path, Version: version}, directory); err != nil {
		return err
	}
	return archive.Close()
}
