package groups

import "context"

func (s *Service) Why(ctx context.Context, sub string, directoryGroups []string) ([]Path, error) {
	panic("soon")
}
func (s *Service) Everyone(ctx context.Context, a Actor, name string, limit int) ([]Reach, bool, error) {
	panic("soon")
}
func (s *Service) Export(ctx context.Context, a Actor, f Filter, fn func(File) error) error {
	panic("soon")
}
func (s *Service) Apply(ctx context.Context, a Actor, files []File, o ApplyOptions) ([]Applied, error) {
	panic("soon")
}
